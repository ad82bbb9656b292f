"""What every route shares: problems, keys, pages, the API's description."""
