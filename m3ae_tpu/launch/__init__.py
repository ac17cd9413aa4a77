"""Runs on rented TPU slices: created, installed, started, watched and deleted by `gcloud`."""
