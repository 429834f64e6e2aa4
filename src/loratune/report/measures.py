"""The measures that tables show: their titles, factors and decimals."""

# name in evaluation.json -> (what a person reads; an arrow points to what is better, factor, decimals)
MEASURES = {
    "nll": ("loss, nats a token ↓", 1, 3),
    "perplexity": ("perplexity ↓", 1, 2),
    "bits_per_byte": ("bits a byte ↓", 1, 3),
    "rouge_l": ("ROUGE-L, % ↑", 100, 1),
    "execution_accuracy": ("right results, % ↑", 100, 1),
    "program_accuracy": ("right programs, % ↑", 100, 1),
    "execution_accuracy_all": ("right results (all), % ↑", 100, 1),
    "program_accuracy_all": ("right programs (all), % ↑", 100, 1),
    "valid_programs": ("valid programs, % ↑", 100, 1),
    "eos_rate": ("ended by itself, %", 100, 1),
    "mean_tokens": ("tokens in an answer", 1, 1),
    "rep_4": ("repeated 4-grams, % ↓", 100, 1),
    "distinct_2": ("distinct 2-grams, %", 100, 1),
}  # without cap_rate: it is what eos_rate leaves
