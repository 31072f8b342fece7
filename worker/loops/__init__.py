"""One seam, one file per way of waiting."""
