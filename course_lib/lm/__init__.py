"""Language models: tokenizer, building and loading, log-probabilities, sampling."""

from course_lib.lm.device import autocast, best_device
from course_lib.lm.logprobs import completion_logprobs, token_logprobs
from course_lib.lm.model import build_lm, load_lm, save_lm
from course_lib.lm.sampling import Rollouts, sample
from course_lib.lm.tokenizer import encode_documents, train_tokenizer

__all__ = [
    "Rollouts", "autocast", "best_device", "build_lm", "completion_logprobs", "encode_documents", "load_lm", "sample",
    "save_lm", "token_logprobs", "train_tokenizer",
]
