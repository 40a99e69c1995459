"""Datasets found in their official places get their official names."""
