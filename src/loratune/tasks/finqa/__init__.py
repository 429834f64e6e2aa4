"""FinQA: `source` reads its questions, `task` scores programs that answer them."""
