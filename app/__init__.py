"""The front end: HTTP API, CLI, database. Importing it never imports torch, transformers or worker."""
