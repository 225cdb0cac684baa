"""Contrastive learning and clustering of sentences and documents."""
