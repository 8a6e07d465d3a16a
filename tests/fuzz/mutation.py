"""Changes inputs at random: bytes, numbers, pieces of other inputs and words of the format.

The choices come from one `random.Random`, so that a seed names a whole run.
"""

MOST_CHANGES = 6
LONGEST = 16_384  # bytes of a mutant
NUMBERS = [
    number.to_bytes(width, order)
    for width in (1, 2, 4, 8)
    for number in (0, 1, (1 << (8 * width - 1)) - 1, 1 << (8 * width - 1), (1 << (8 * width)) - 1)
    for order in ("little", "big")
]


def mutant(corpus, words, choice):
    """One input of the corpus with one to six changes; rarely a random one."""
    if choice.random() < 0.02:
        return choice.randbytes(choice.randrange(64))
    content = bytearray(choice.choice(corpus))
    for _ in range(choice.randint(1, MOST_CHANGES)):
        choice.choice(CHANGES)(content, corpus, words, choice)
    return bytes(content[:LONGEST])


def _flip(content, corpus, words, choice):
    if content:
        content[choice.randrange(len(content))] ^= 1 << choice.randrange(8)


def _set(content, corpus, words, choice):
    if content:
        content[choice.randrange(len(content))] = choice.randrange(256)


def _number(content, corpus, words, choice):
    number = choice.choice(NUMBERS)
    at = choice.randrange(len(content) + 1)
    content[at : at + len(number)] = number


def _cut(content, corpus, words, choice):
    at = choice.randrange(len(content) + 1)
    del content[at : at + choice.choice((1, 2, 4, 8, 64))]


def _end(content, corpus, words, choice):
    del content[choice.randrange(len(content) + 1) :]


def _repeat(content, corpus, words, choice):
    at = choice.randrange(len(content) + 1)
    content[at:at] = content[at : at + choice.choice((1, 4, 16, 64))] * choice.choice((1, 2, 8))


def _word(content, corpus, words, choice):
    word = choice.choice(words) if words else choice.randbytes(2)
    at = choice.randrange(len(content) + 1)
    content[at : at + choice.choice((0, 0, len(word)))] = word


def _splice(content, corpus, words, choice):
    other = choice.choice(corpus)
    start = choice.randrange(len(other) + 1)
    at = choice.randrange(len(content) + 1)
    content[at : at + choice.choice((0, 16, len(content)))] = other[
        start : start + choice.choice((4, 32, 999))
    ]


CHANGES = (_flip, _set, _number, _cut, _end, _repeat, _word, _splice, _word)
