"""Compute ROUGE-L, rep-4 and distinct-2 of answers."""

from collections.abc import Sequence
from functools import cache

from loratune.data.words import split_words


def rouge_l(answer: str, reference: str) -> float:
    """Return the F-measure of the longest common subsequence of stemmed words, 0 to 1.

    Lin 2004, "ROUGE", section 3. For ASCII text the value equals the package rouge-score's with its stemmer;
    words of other scripts, which that package drops, count unstemmed.
    """
    return build_rouge_scorer().score(reference, answer)["rougeL"].fmeasure


@cache
def build_rouge_scorer():
    from nltk.stem.porter import PorterStemmer
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import Tokenizer

    stemmer = PorterStemmer()

    class Words(Tokenizer):
        def tokenize(self, text: str) -> list[str]:
            # The package, too, stems only words of more than three letters.
            return [
                stemmer.stem(word) if len(word) > 3 and word.isascii() else word for word in split_words(text)
            ]

    return RougeScorer(["rougeL"], tokenizer=Words())


def rep_4(ids: Sequence[int]) -> float:
    """Return the share of the answer's token 4-grams that repeat an earlier one, 0 to 1.

    Welleck et al. 2020; arXiv:1908.04319.
    """
    grams = ngrams(ids, 4)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct_2(answers: Sequence[Sequence[int]]) -> float:
    """Return the share of distinct 2-grams among all token 2-grams of a set of answers, 0 to 1.

    Li et al. 2016; arXiv:1510.03055. The ratio is computed over the whole set: a phrase in every answer
    counts once. The paper divides by the number of tokens; this divides by the number of 2-grams, so that 1
    means that no 2-gram occurs twice.
    """
    grams = [gram for ids in answers for gram in ngrams(ids, 2)]
    return len(set(grams)) / len(grams) if grams else 0.0


def ngrams(ids: Sequence[int], length: int) -> list[tuple[int, ...]]:
    return [tuple(ids[start : start + length]) for start in range(len(ids) - length + 1)]
