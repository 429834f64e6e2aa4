"""Keep the warnings and progress bars of transformers and the hub's client away from the user's terminal.

They name options that users of loratune do not have; loratune itself checks and reports what matters.
"""

import logging
import warnings
from contextlib import contextmanager


@contextmanager
def quiet_libraries():
    """Run the block without warnings.

    The libraries' log level stays at errors afterwards: a tokenizer also warns when it is used.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
