"""FinQA, all of it: `source` reads its questions, `task` scores programs as answers to them."""
