"""Contrastive learning and clustering of images."""
