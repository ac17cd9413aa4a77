"""Fine-tuning: an encoder and a head learn the classes of images."""
