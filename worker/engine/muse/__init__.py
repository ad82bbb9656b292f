"""MUSE's metrics (arXiv 2407.06460): VerbMem, KnowMem, PrivLeak, exactly as defined and batched."""
