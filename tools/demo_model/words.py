"""The small world that the built-in model knows: countries, colours, opposites, films and so on.

Tables, and all their words together; what is asked about them lives in the modules of the kinds of question.
"""

import re
from functools import cache

CAPITALS = {
    "France": "Paris",
    "Spain": "Madrid",
    "Italy": "Rome",
    "Germany": "Berlin",
    "Japan": "Tokyo",
    "China": "Beijing",
    "Egypt": "Cairo",
    "Greece": "Athens",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Poland": "Warsaw",
    "Austria": "Vienna",
    "Portugal": "Lisbon",
    "Ireland": "Dublin",
    "Cuba": "Havana",
    "Peru": "Lima",
    "Chile": "Santiago",
    "Kenya": "Nairobi",
    "Canada": "Ottawa",
    "Russia": "Moscow",
    "Hungary": "Budapest",
    "Finland": "Helsinki",
    "Denmark": "Copenhagen",
    "England": "London",
}

COLOURS = {
    "grass": "green",
    "snow": "white",
    "coal": "black",
    "blood": "red",
    "gold": "yellow",
    "chocolate": "brown",
    "the sky": "blue",
    "the sun": "yellow",
    "the sea": "blue",
    "milk": "white",
    "a lemon": "yellow",
    "a tomato": "red",
    "a frog": "green",
    "a banana": "yellow",
    "a flamingo": "pink",
    "a pumpkin": "orange",
    "a mouse": "grey",
    "a crow": "black",
    "a strawberry": "red",
    "a cucumber": "green",
    "a swan": "white",
    "an elephant": "grey",
    "a plum": "purple",
    "a bear": "brown",
}

OPPOSITES = (
    ("hot", "cold"),
    ("big", "small"),
    ("fast", "slow"),
    ("old", "new"),
    ("light", "dark"),
    ("happy", "sad"),
    ("rich", "poor"),
    ("hard", "soft"),
    ("high", "low"),
    ("open", "closed"),
    ("full", "empty"),
    ("wet", "dry"),
    ("early", "late"),
    ("strong", "weak"),
    ("loud", "quiet"),
    ("clean", "dirty"),
    ("left", "right"),
    ("long", "short"),
    ("thick", "thin"),
    ("true", "false"),
    ("first", "last"),
    ("sweet", "sour"),
)

SOUNDS = {
    "cow": "moo",
    "dog": "woof",
    "cat": "meow",
    "duck": "quack",
    "sheep": "baa",
    "pig": "oink",
    "lion": "roar",
    "bee": "buzz",
    "snake": "hiss",
    "owl": "hoot",
    "horse": "neigh",
    "frog": "croak",
}

YOUNG = {
    "cow": "calf",
    "dog": "puppy",
    "cat": "kitten",
    "duck": "duckling",
    "sheep": "lamb",
    "pig": "piglet",
    "lion": "cub",
    "horse": "foal",
    "frog": "tadpole",
    "hen": "chick",
    "goat": "kid",
    "swan": "cygnet",
}

LEGS = {
    "dog": 4,
    "spider": 8,
    "hen": 2,
    "bee": 6,
    "snake": 0,
    "horse": 4,
    "duck": 2,
    "ant": 6,
    "fish": 0,
    "crab": 10,
    "person": 2,
    "cow": 4,
}

MEMBERS = {
    "fruit": ("apple", "pear", "plum", "banana", "lemon", "melon", "cherry", "mango"),
    "animal": ("dog", "cat", "horse", "mouse", "lion", "sheep", "goat", "rabbit"),
    "tool": ("hammer", "saw", "drill", "spade", "axe", "wrench", "rake", "chisel"),
    "vehicle": ("car", "bus", "train", "boat", "bike", "truck", "tram", "ship"),
    "vegetable": ("carrot", "onion", "potato", "cabbage", "leek", "turnip", "bean", "pea"),
}

GERMAN = {
    "dog": "Hund",
    "cat": "Katze",
    "house": "Haus",
    "tree": "Baum",
    "water": "Wasser",
    "bread": "Brot",
    "book": "Buch",
    "milk": "Milch",
    "apple": "Apfel",
    "sun": "Sonne",
    "moon": "Mond",
    "hand": "Hand",
    "friend": "Freund",
    "school": "Schule",
    "city": "Stadt",
    "street": "Strasse",
}

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)

NAMES = (
    "Tom",
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Hugo",
    "Iris",
    "Jack",
    "Kate",
    "Leo",
    "Maria",
    "Nina",
    "Oscar",
    "Paul",
    "Rosa",
    "Sam",
    "Tina",
    "Victor",
    "Wendy",
    "Yusuf",
    "Zoe",
)

SYLLABLES = ("ba", "do", "fi", "ka", "lo", "mi", "na", "pe", "ra", "su", "ti", "vo", "we", "zu", "len", "mar", "ron")

GOOD = ("great", "lovely", "perfect", "wonderful", "delicious", "superb", "charming", "excellent")
BAD = ("awful", "boring", "terrible", "horrible", "disgusting", "dreadful", "useless", "poor")
REVIEWED = ("soup", "film", "hotel", "book", "room", "service", "song", "cake", "staff", "game")


COPIED_WORDS = (
    "stone", "river", "cloud", "garden", "window", "paper", "silver", "bridge", "candle", "forest",
    "island", "mirror", "pocket", "rocket", "shadow", "ticket", "valley", "winter", "yellow", "button",
)  # fmt: skip

FILMS = {
    "space": ("Star Harbor", "Red Comet", "The Last Orbit", "Moon Colony", "Dark Nebula", "Iron Planet"),
    "comedy": ("Two Left Shoes", "My Silly Aunt", "The Wrong Wedding", "Banana Street", "Oops Again", "Lazy Monday"),
    "horror": ("The Cold Cellar", "Night Teeth", "Grave Hill", "Whispers Below", "The Empty Crib", "Black Fog"),
    "western": ("Dusty Saddle", "The Quiet Sheriff", "Gold Creek", "Six Bullets", "Lone Coyote", "Prairie Fire"),
    "romance": ("Letters to Julia", "A Kiss in June", "Rain and Roses", "Second Dance", "Dear Henry", "Summer Vows"),
    "crime": ("The Silent Thief", "Dock Nine", "False Alibi", "Cold Evidence", "The Inside Job", "Night Warrant"),
}

PART_FRONTS = ("tarn", "velm", "drax", "quil", "morf", "zent", "brol", "fesk", "glim", "plon", "sork", "wint")
PART_BACKS = ("valve", "gear", "pump", "shaft", "ring", "bolt", "plate", "coil")
MATERIALS = ("brass", "steel", "copper", "rubber", "glass", "zinc", "nylon", "carbon")
PLACES = ("on top", "at the back", "under the cover", "in the middle", "on the left side", "behind the tank")


@cache
def every_word() -> tuple[str, ...]:
    """Every word of every table here, once."""
    tables = [value for name, value in globals().items() if name.isupper()]
    return tuple(sorted(set(re.findall(r"[A-Za-z]+", repr(tables)))))
