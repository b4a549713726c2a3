"""What the tables of the SQL family draw from: eight subjects."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Domain:
    """What tables of one subject draw from. `names` identify rows; number columns have a range of values."""

    tables: tuple[str, ...]
    key: str
    names: tuple[str, ...]
    texts: dict[str, tuple[str, ...]]
    numbers: dict[str, tuple[int, int]]


_CITIES = ("London", "Paris", "Rome", "Boston", "Chicago", "Berlin", "Madrid", "Vienna")
_COUNTRIES = ("France", "Italy", "Spain", "Japan", "Canada", "Brazil", "India", "Egypt")
_COLOURS = ("red", "blue", "green", "black", "white", "yellow")
_PEOPLE = ("Anna", "Ben", "David", "Frank", "Henry", "Jack", "Peter", "Mary", "James", "Robert", "Sarah", "Alice")

DOMAINS = (
    Domain(
        ("employees", "staff", "workers"),
        "name",
        _PEOPLE,
        {
            "city": _CITIES,
            "department": ("sales", "finance", "legal", "support"),
            "role": ("manager", "clerk", "driver"),
        },
        {"salary": (1000, 9000), "age": (20, 65), "bonus": (10, 900)},
    ),
    Domain(
        ("products", "articles", "goods"),
        "name",
        ("lamp", "table", "chair", "desk", "bowl", "vase", "shelf", "mug"),
        {
            "color": _COLOURS,
            "material": ("wood", "glass", "metal", "stone"),
            "maker": ("Acme", "Nova", "Delta", "Orion"),
        },
        {"price": (5, 500), "stock": (0, 300), "weight": (1, 90)},
    ),
    Domain(
        ("books", "novels", "titles"),
        "title",
        ("Winter", "The River", "Silence", "Home", "The Garden", "Light"),
        {
            "author": _PEOPLE,
            "language": ("English", "French", "German", "Spanish"),
            "genre": ("crime", "poetry", "history"),
        },
        {"pages": (80, 900), "year": (1900, 2020), "copies": (1, 50)},
    ),
    Domain(
        ("flights", "trips", "departures"),
        "code",
        ("AB1", "AB2", "CD7", "CD9", "EF4", "GH3", "KL5", "MN8"),
        {"origin": _CITIES, "destination": _COUNTRIES, "airline": ("Condor", "Swift", "Eagle", "Falcon")},
        {"distance": (200, 9000), "seats": (40, 400), "delay": (0, 120)},
    ),
    Domain(
        ("students", "pupils", "learners"),
        "name",
        _PEOPLE,
        {
            "country": _COUNTRIES,
            "subject": ("physics", "music", "biology", "law"),
            "hall": ("north", "south", "east", "west"),
        },
        {"score": (0, 100), "age": (17, 40), "credits": (0, 180)},
    ),
    Domain(
        ("cars", "vehicles", "rentals"),
        "model",
        ("Astra", "Corsa", "Polo", "Golf", "Fiesta", "Focus", "Civic"),
        {"color": _COLOURS, "city": _CITIES, "fuel": ("petrol", "diesel", "electric")},
        {"price": (900, 60000), "mileage": (0, 200000), "doors": (2, 5)},
    ),
    Domain(
        ("films", "movies", "features"),
        "title",
        ("The Storm", "Alone", "Two Days", "The Bridge", "Ice", "Summer"),
        {"director": _PEOPLE, "country": _COUNTRIES, "genre": ("drama", "comedy", "horror", "western")},
        {"length": (60, 240), "rating": (1, 10), "budget": (1, 300)},
    ),
    Domain(
        ("farms", "estates", "ranches"),
        "owner",
        _PEOPLE,
        {
            "country": _COUNTRIES,
            "crop": ("wheat", "corn", "rice", "barley"),
            "region": ("north", "south", "coast", "valley"),
        },
        {"area": (10, 5000), "cows": (0, 400), "income": (1000, 90000)},
    ),
)
