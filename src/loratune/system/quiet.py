"""Keep the warnings and progress bars of transformers and the hub's client away from the user's terminal.

They speak of options that users of loratune do not have; what matters to them is checked, and said, by
loratune itself.
"""

import logging
import warnings
from contextlib import contextmanager


@contextmanager
def quiet_libraries():
    """Run the block without warnings. The libraries' log stays at errors afterwards: a tokenizer warns when
    it is used, too.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
