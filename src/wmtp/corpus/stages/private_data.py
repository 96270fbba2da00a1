"""What names a person: numbers and addresses of a known shape give way to fixed words."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Final

from wmtp.corpus.document import Document
from wmtp.corpus.stages import private_shapes as shapes
from wmtp.corpus.stages.base import NOTHING, Counts

REPLACEMENTS: Final = {
    "resident_number": "<주민등록번호>",
    "foreigner_number": "<외국인등록번호>",
    "card": "<카드번호>",
    "email": "<이메일>",
    "phone": "<전화번호>",
    "driver_licence": "<운전면허번호>",
    "passport": "<여권번호>",
    "account": "<계좌번호>",
}
"""What stands in the text instead, by kind."""


@dataclass(frozen=True, slots=True)
class PrivateData:
    """Replace resident numbers, cards, phones, e-mail addresses, accounts and identity papers.

    A number is only taken for private if its shape and its check digit, or a word before it, say
    so: prices, dates, product numbers, articles of laws, decimal numbers, ISBNs, addresses of
    machines and versions stay. Left as they are on purpose: numbers of companies (1588-0000,
    080-...), addresses at domains that are reserved for examples, and names of people.

    Attributes:
        resident_number: numbers of residents and of foreigners.
        card: numbers of payment cards.
        email: addresses.
        phone: mobile, landline and internet phones in Korean shapes, also with +82.
        account: bank accounts after a bank's name or a word such as 계좌.
        papers: passports and driver's licences after their word.

    Example:
        >>> from wmtp.corpus.document import Place
        >>> document = Document("1", "문의 010-1234-5678, 2,000,000원", "web", "", Place("a", 0))
        >>> changed, counts = PrivateData().counted(document)
        >>> changed.text, dict(counts)
        ('문의 <전화번호>, 2,000,000원', {'phone': 1, 'phone_bytes': -1})
    """

    name: ClassVar[str] = "private_data"

    resident_number: bool = True
    card: bool = True
    email: bool = True
    phone: bool = True
    account: bool = True
    papers: bool = True

    def __call__(self, document: Document) -> Document:
        """The document with fixed words for what was private; never dropped."""
        return self.counted(document)[0]

    def counted(self, document: Document) -> tuple[Document, Counts]:
        """The same, and how many were replaced of each kind.

        ``KIND_bytes`` counts by how many bytes of UTF-8 that made the text shorter.
        """
        counts: dict[str, int] = {}
        text = self.replaced(document.text, counts)
        if not counts:
            return document, NOTHING
        return replace(document, text=text), counts

    def replaced(self, text: str, counts: dict[str, int]) -> str:
        """The text with fixed words in it; adds to the counts."""

        def put(kind: str, found: str) -> str:
            word = REPLACEMENTS[kind]
            counts[kind] = counts.get(kind, 0) + 1
            shorter = len(found.encode("utf-8", "surrogatepass")) - len(word.encode())
            counts[f"{kind}_bytes"] = counts.get(f"{kind}_bytes", 0) + shorter
            return word

        if self.email and "@" in text:
            text = shapes.replace_emails(text, put)
        if shapes.has_long_number(text):
            # resident numbers first: thirteen digits with a date; a phone's shape is the loosest
            for wanted, replaces in self._numbers():
                if wanted:
                    text = replaces(text, put)
        return text

    def _numbers(self) -> tuple[tuple[bool, Callable[[str, shapes.Put], str]], ...]:
        return (
            (self.resident_number, shapes.replace_resident_numbers),
            (self.card, shapes.replace_cards),
            (self.papers, shapes.replace_papers),
            (self.account, shapes.replace_accounts),
            (self.phone, shapes.replace_phones),
        )
