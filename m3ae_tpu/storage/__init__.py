"""Objects of Google Cloud Storage: folders of them, the lease on one, and its mirror on a disk."""
