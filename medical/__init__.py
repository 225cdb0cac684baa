"""Contrastive learning and clustering of medical images and volumes."""
