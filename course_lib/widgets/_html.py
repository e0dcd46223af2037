"""Small helpers to draw with HTML: tags with inline styles, visible tokens, numbers, the palette.

Styles are inline and layouts are tables or runs of inline blocks, so that a picture survives a viewer that removes
`<style>` and scripts, and is still readable where styles are removed as well.
"""

import math
from html import escape

INK, MUTED, GREY, LINE, FAINT, PAPER = "#1f2933", "#5f6b7a", "#9aa5b1", "#c9d1da", "#eef1f4", "#ffffff"
BLUE, BLUE_TINT = "#0b62a4", "#dcebf8"  # what is trained on, what the model produced
ORANGE, ORANGE_TINT = "#a8480a", "#fdeadb"  # what happens now
MONO = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
SANS = "system-ui, 'Segoe UI', Roboto, Helvetica, Arial, 'DejaVu Sans', sans-serif"


def tag(name: str, *children: str, title: str = "", colspan: int = 1, **style: object) -> str:
    """An HTML element with inline styles. Children are HTML already: pass text through `html.escape` first.

    >>> tag("b", "x", font_size="12px")
    '<b style="font-size:12px">x</b>'
    """
    css = ";".join(f"{key.replace('_', '-')}:{value}" for key, value in style.items())
    attributes = f' title="{escape(title)}"' if title else ""
    attributes += f' colspan="{colspan}"' if colspan > 1 else ""
    attributes += f' style="{escape(css)}"' if css else ""
    return f"<{name}{attributes}>{''.join(children)}</{name}>"


def card(*children: str) -> str:
    """The white sheet on which every widget draws, readable in dark themes too."""
    return tag(
        "div", *children, background=PAPER, color=INK, font_family=SANS, font_size="14px", line_height="1.45",
        padding="12px 16px", border=f"1px solid {LINE}", border_radius="8px", max_width="780px",
        box_sizing="border-box", overflow_x="auto",
    )


def heading(text: str) -> str:
    return tag("div", escape(text), color=MUTED, font_size="13px", font_weight="600", margin="10px 0 4px 0")


def box(text: str, *, ink=INK, fill=PAPER, edge=LINE, line="solid") -> str:
    """One token in a frame."""
    return tag(
        "span", escape(text), display="inline-block", font_family=MONO, font_size="14px", padding="2px 5px",
        color=ink, background=fill, border=f"1px {line} {edge}", border_radius="4px", white_space="pre",
    )


TRAINED = {"ink": BLUE, "fill": BLUE_TINT, "edge": BLUE}  # the frame of a target, and of a token that is none
UNTRAINED = {"ink": MUTED, "fill": FAINT, "line": "dashed"}


def chip(text: str, below: str = "", *, title: str = "", **frame: str) -> str:
    """A framed token in running text, with a small note under it."""
    note = tag("span", escape(below), display="block", font_size="11px", color=MUTED, font_family=MONO) if below else ""
    return tag(
        "span", box(text, **frame), note, title=title, display="inline-block", text_align="center", margin="2px 2px",
        vertical_align="top",
    ) + " "


def _byte_decoder() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable character: the table back (GPT-2's, Radford et al. 2019)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(shifted)}


_BYTES = _byte_decoder()


def visible(text: str) -> str:
    """Text with white space and control characters made visible: `·` for a space, `↵` for a line break, `⇥`, `⟨07⟩`."""
    shown = text.translate({ord(" "): "·", ord("\n"): "↵", ord("\t"): "⇥"})
    return "".join(c if c.isprintable() else f"⟨{ord(c):02X}⟩" for c in shown)


def token_text(tokenizer, token_id: int) -> str:
    """What token `token_id` stands for, visibly: `·San`, `↵`, `<|end|>`, `⟨E2⟩` for a byte that is no character."""
    token = tokenizer.convert_ids_to_tokens(int(token_id))
    if token is None:
        return f"⟨id {int(token_id)}⟩"
    if int(token_id) in tokenizer.added_tokens_decoder:
        return token
    if "ByteLevel" in str(getattr(tokenizer.backend_tokenizer, "decoder", "")):
        raw = bytes(_BYTES[character] for character in token)
        try:
            return visible(raw.decode("utf-8"))
        except UnicodeDecodeError:
            return "".join(f"⟨{byte:02X}⟩" for byte in raw)
    return visible(token.replace("▁", " "))


def number(p: float) -> str:
    """A probability in at most seven characters: `0.312`, `1`, `4.1×10⁻⁵`."""
    if p <= 0:
        return "0"
    return f"{p:.3f}" if p >= 0.001 else from_log(math.log(p))


def from_log(log_p: float) -> str:
    """exp(log_p) in scientific notation, also where a float would underflow to 0.

    >>> from_log(-1000.0)
    '5.1×10⁻⁴³⁵'
    """
    if log_p == -math.inf:
        return "0"
    exponent = math.floor(log_p / math.log(10))
    mantissa = math.exp(log_p - exponent * math.log(10))
    if round(mantissa, 1) >= 10:
        mantissa, exponent = mantissa / 10, exponent + 1
    digits = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa:.1f}×10{digits}" if exponent else f"{mantissa:.1f}"


def signed(x: float) -> str:
    """A number with two decimals and a real minus sign."""
    return f"{x:.2f}".replace("-", "−")
