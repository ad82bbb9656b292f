"""Reports: an audit's outcome as a document, how it is built from the evidence, and how it is rendered."""
