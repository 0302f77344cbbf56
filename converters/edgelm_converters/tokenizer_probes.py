"""Texts on which tokenizers tend to disagree. A converted tokenizer is compared with its source on all of them."""

from __future__ import annotations

__all__ = ["PROBE_TEXTS"]

PROBE_TEXTS: tuple[str, ...] = (
    # Plain, and nearly nothing
    "What is the weather like tomorrow?",
    "",
    " ",
    "   \t\n  ",
    "a",
    ".",
    # White space: in front, at the end, doubled, other than ASCII
    "  two  spaces   and three  ",
    "tab\tnew line\ncarriage\r\nform\ffeed\x0bvertical",
    "trailing space ",
    "line one\n\n\nline two\n",
    "no-break\u00a0space thin\u2009space ideographic\u3000space narrow\u202fspace line\u2028separator",
    "\ufeffbyte order mark",
    # Case
    "MiXeD CaSe WORDS, iPhone and McDonald's",
    "Straße STRASSE ẞ Ιησούς ΟΔΥΣΣΕΥΣ İstanbul ISPARTA ǅ",
    # Accents: composed, decomposed, several on one letter
    "café cafe\u0301 naïve Ångström A\u030angstro\u0308m résumé",
    "Việt Nam tiếng Việt e\u0323\u0302",
    "z\u0335a\u0321l\u0322g\u0337o\u0338",
    "ᾳ ᾼ ῼ \u0345",
    # Punctuation and symbols
    "Hello, world!! (really?) -- yes; no: \"maybe\" 'so' `tick` ^caret^ $5 100% a_b a-b #tag @user",
    "don't can't we're they've I'd you'll it's 'tis rock'n'roll DON'T",
    "… – — ‘single’ “double” «guillemets» ¿qué? ¡sí! · • § ¶ † ‰",
    "a+b=c <tag> x|y ~z \\back /forward {brace} [bracket]",
    "https://example.org/path?query=1&other=two#part name@example.org",
    # Numbers
    "0 7 42 1234567890 3.14159 1,000,000 -273.15 1e-5 0x1F 12:30 2024-02-29 ½ ² ³ ① Ⅷ ٣٤٥ ६७ 7६ ६ x",
    "phone 5551234567 room 101a 1st 22nd v2.0.1",
    # Scripts
    "今天天气怎么样？ 東京都 hello世界hello",
    "こんにちは カタカナ ｶﾀｶﾅ ﾞ ㍻ 한국어 한글 \u1112\u1161\u11ab",
    "Привет, мир! Ёлка ёлка Київ",
    "مرحبا بالعالم \u202bשלום עולם\u202c שָׁלוֹם",
    "नमस्ते दुनिया क्षि",
    "สวัสดีชาวโลก",
    "สวัสดีชาวโลก" * 12,
    "ﷺ ﬁne ﬂow Ａｂｃ１２３ ｆｕｌｌ 🅰 ℃ № ™ ™x ℡",
    # Emoji: plain, with a selector, joined, a flag
    "I ❤️ this 😀😀 👨‍👩‍👧‍👦 👍🏽 🇩🇪 ☕︎",
    # Control and invisible characters
    "bell\x07 escape\x1b[0m delete\x7f mark\x01one",
    "zero\u200bwidth\u200djoiner soft\u00adhyphen word\u2060joiner \u200eleft\u200f",
    "\ufffd replacement \ue000 private \U000e0001 tag \ufdd0",
    # Long
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    "a" * 99 + " " + "b" * 100 + " " + "c" * 101,
    "é" * 50 + " " + "é" * 51,
    "very " * 300,
    # Tokens of the tokenizers themselves, written in the text
    "[CLS] hello [SEP] [PAD] [MASK] [UNK] [cls]",
    "<s> hello </s> <pad><mask> <unk>",
    "##ing ##s # # ▁hello ▁ Ġhello Ċ",
    "x[MASK]y a<mask>b [SEP]",
)
