"""One class for each emoji, whatever the sets call it."""

import json

from data_prep.rendering import emoji_names, packages
from tests.data_prep.rendering.icon_packages import package


def icons(name: str, *names: str, codes=None, aliases=None) -> packages.IconSet:
    described = dict.fromkeys(names, "<g/>")
    return packages.IconSet(package(name, described, codes, aliases))


def classes(*sets: packages.IconSet) -> dict[str, list[tuple[str, str]]]:
    found, _ = emoji_names.classes_of(sets)
    return {name: [(s.name, icon) for s, icon in members] for name, members in found.items()}


def test_code_points_join_icons_of_any_name():
    noto = icons("noto", "red-heart", codes={"2764": "red-heart"})
    twemoji = icons("twemoji", "heart", codes={"2764-FE0F": "heart"})
    assert classes(noto, twemoji) == {"red-heart": [("noto", "red-heart"), ("twemoji", "heart")]}


def test_sets_without_code_points_are_joined_by_names_aliases_and_those_of_unicode():
    noto = icons(
        "noto", "bullseye", "two-hearts", "panda", "locomotive",
        codes={"1f3af": "bullseye", "1f495": "two-hearts", "1f43c": "panda", "1f682": "locomotive"},
        aliases={"panda-face": {"parent": "panda"}},
    )  # fmt: skip
    others = icons("fxemoji", "directhit", "2hearts", "pandaface", "train", "unheardof",
                   aliases={"steam-locomotive": {"parent": "train"}})  # fmt: skip
    assert {name: members[1] for name, members in classes(noto, others).items()} == {
        "bullseye": ("fxemoji", "directhit"),
        "two-hearts": ("fxemoji", "2hearts"),
        "panda": ("fxemoji", "pandaface"),
        "locomotive": ("fxemoji", "train"),
    }
    _, left_out = emoji_names.classes_of([noto, others])
    assert left_out["fxemoji"] == {"unknown names": 1}


def test_skin_tones_flags_of_places_and_private_signs_are_no_classes():
    codes = {
        "1f44b": "waving-hand",
        "1f44b-1f3fd": "waving-hand-medium",
        "1f9d1-1f3fb-200d-1f91d-200d-1f9d1-1f3ff": "people-holding-hands",
        "1f1f3-1f1f4": "flag-norway",
        "1f3f4-e0067-e0062-e0073-e0063-e0074-e007f": "flag-scotland",
        "1f3c1": "chequered-flag",
        "e1d1": "keyboard",
        "f8ff": "fruit",
    }
    noto = icons("noto", *codes.values(), "nameless", codes=codes)
    fluent = icons("fluent-emoji", "waving-hand", "waving-hand-medium", "keyboard")
    found, left_out = emoji_names.classes_of([noto, fluent])
    assert found.keys() == {"waving-hand", "chequered-flag"}
    assert left_out["noto"] == {
        "skin tones": 2, "flags of places": 2, "not in Unicode": 2, "unknown names": 1
    }  # fmt: skip
    assert left_out["fluent-emoji"] == {"skin tones": 1, "unknown names": 1}


def test_withdrawn_and_second_pictures_are_left_out():
    files = package("noto", {"a": "<g/>", "b": "<g/>"}, {"1f600": "a", "1f601": "b"})
    described = json.loads(files["icons.json"])
    described["icons"]["b"]["hidden"] = True
    noto = packages.IconSet(files | {"icons.json": json.dumps(described).encode()})
    twins = icons("emojione", "a", "grinning-face")
    found, left_out = emoji_names.classes_of([noto, twins])
    assert [(s.name, icon) for s, icon in found["a"]] == [("noto", "a"), ("emojione", "a")]
    assert left_out["noto"] == {"withdrawn": 1}
    assert left_out["emojione"] == {"second pictures of an emoji": 1}


def test_two_emoji_of_one_name_stay_two():
    noto = icons("noto", "button", codes={"1f199": "button"})
    twemoji = icons("twemoji", "button", codes={"1f53c": "button"})
    assert classes(noto, twemoji).keys() == {"button (1f199)", "button (1f53c)"}


def test_code_points_that_are_none_are_unknown():
    noto = icons("noto", "a", "b", "c", codes={"zzz": "a", "110000": "b", "": "c"})
    assert emoji_names.classes_of([noto]) == ({}, {"noto": {"unknown names": 3}})


def test_without_code_points_there_are_no_classes():
    assert classes(icons("fxemoji", "house")) == {}
