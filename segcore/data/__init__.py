"""What training and evaluation read: the manifest, pictures, splits, crops, samples, batches."""
