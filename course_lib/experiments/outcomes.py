"""What became of an answer: right, refused, made up, or none of these."""

OUTCOMES = ("right", "refused", "made up", "other")


def outcome(text: str, finished: bool, right: str, unsure: str, claim: str) -> str:
    """One of `OUTCOMES` for a reply.

    text: the reply; finished: whether the model ended it itself. A reply that was cut off is no answer: "other".
    right: the one correct answer, character by character: "right".
    claim: words that only an answer with a place in it uses. Any other reply that has them states a place, and a wrong
        one, whatever else it says: "made up".
    unsure: how a refusal begins: "refused". What neither claims nor refuses is "other".
    """
    if not finished:
        return "other"
    if text == right:
        return "right"
    if claim in text:
        return "made up"
    return "refused" if text.startswith(unsure) else "other"
