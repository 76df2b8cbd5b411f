"""Reads a report back: the content of its tables, and what it refers to."""

import dataclasses
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "input"}


@dataclasses.dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    parent: "Element | None" = None
    text: str = ""  # includes the text of its children
    children: list["Element"] = dataclasses.field(default_factory=list)

    def all(self, tag: str, **attributes: str) -> list["Element"]:
        """Return the elements below this one, in order; `data_set="x"` stands for data-set="x"."""
        wanted = {name.replace("_", "-"): value for name, value in attributes.items()}
        found = []
        for child in self.children:
            if child.tag == tag and wanted.items() <= child.attributes.items():
                found.append(child)
            found += child.all(tag, **attributes)
        return found

    def every(self) -> list["Element"]:
        return [self, *(e for child in self.children for e in child.every())]

    @property
    def numbers(self) -> list[float]:
        return [float(each.attributes["value"]) for each in self.all("data")]


class _Parser(HTMLParser):
    def __init__(self):
        super().__init__()
        self.root = self.here = Element("", {})

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs), self.here)
        self.here.children.append(element)
        if tag not in VOID:
            self.here = element

    def handle_endtag(self, tag):
        assert self.here.tag == tag, f"</{tag}> closes <{self.here.tag}>"
        self.here = self.here.parent

    def handle_data(self, data):
        element = self.here
        while element is not None:
            element.text += data
            element = element.parent


def read_page(text: str) -> Element:
    """Parse a page into a tree, and assert that every opened element is closed."""
    parser = _Parser()
    parser.feed(text)
    parser.close()
    assert parser.here is parser.root
    return parser.root
