"""Lists: dishes with what they need and how they are made, and things to buy or to pack."""

from collections.abc import Mapping
from dataclasses import dataclass

from gptfast_cli.bundled.recipe.grammar import Dice, fill


@dataclass(frozen=True, slots=True)
class Dish:
    """What a dish is made of, in the order of use, and its steps as templates."""

    needs: tuple[str, ...]
    steps: tuple[str, ...]


DISHES: Mapping[str, Dish] = {
    "pancakes": Dish(
        ("[one cup|two cups] of flour", "[two|three] eggs", "[a little|one cup of] milk", "[some|a little] butter"),
        (
            "Mix the flour, the eggs and the milk [in a bowl|until smooth].",
            "Melt the butter in a [hot pan|big pan].",
            "Fry each pancake for [one minute|two minutes] on both sides.",
            "Serve them with [honey|jam|sugar|fresh berries].",
        ),
    ),
    "tomato soup": Dish(
        ("[four|six|eight] tomatoes", "one onion", "[some|a spoon of] oil", "[two|three] cups of water"),
        (
            "Cut the tomatoes and the onion [into small pieces|finely].",
            "Fry the onion in the oil [for two minutes|until it is golden].",
            "Add the tomatoes and the water and cook for [ten|fifteen|twenty] minutes.",
            "Serve the soup with [bread|cream|basil].",
        ),
    ),
    "lemon tea": Dish(
        ("[one|two] tea bags", "[half a|one] lemon", "[a spoon|two spoons] of honey", "[one cup|a pot] of hot water"),
        (
            "Pour the hot water over the tea [slowly|carefully].",
            "Wait for [three|four|five] minutes.",
            "Add the juice of the lemon and stir in the honey.",
            "Drink it [hot|while it is warm|with ice].",
        ),
    ),
    "fruit salad": Dish(
        ("[two|three] apples", "[one banana|two bananas]", "[some grapes|one orange]", "[a little|some] lemon juice"),
        (
            "Wash the fruit [well|under cold water].",
            "Cut everything into [small|little] pieces.",
            "Pour the lemon juice over the fruit.",
            "[Chill the salad for an hour|Eat it at once|Serve it with cream].",
        ),
    ),
    "fried eggs": Dish(
        ("[two|three|four] eggs", "[a little|some] butter", "[a pinch of|some] salt"),
        (
            "Melt the butter in a [small|hot] pan.",
            "Break the eggs into the pan [one by one|carefully].",
            "Fry them for [two|three|four] minutes.",
            "Add the salt and serve them [on toast|with bread|with beans].",
        ),
    ),
    "potato salad": Dish(
        ("[six|eight|ten] potatoes", "one onion", "[three|four] spoons of oil", "[two spoons of|some] vinegar"),
        (
            "Boil the potatoes for [twenty|thirty] minutes and [peel them|let them cool].",
            "Cut the potatoes [into slices|into cubes].",
            "Chop the onion and mix it with the oil and the vinegar.",
            "Stir everything [gently|well] and [wait for an hour|serve it cold].",
        ),
    ),
    "apple cake": Dish(
        ("[three|four] apples", "[two|three] cups of flour", "[one cup|half a cup] of sugar", "[two|three] eggs"),
        (
            "Peel the apples and cut them [into slices|into small pieces].",
            "Mix the flour, the sugar and the eggs [in a bowl|until smooth].",
            "Fold in the apples and pour everything into a [round|square] tin.",
            "Bake the cake for [forty|fifty|sixty] minutes.",
        ),
    ),
    "rice pudding": Dish(
        ("[one cup|half a cup] of rice", "[three|four] cups of milk", "[two|three] spoons of sugar", "[some|a little] cinnamon"),
        (
            "Boil the milk [slowly|in a big pot] and add the rice.",
            "Cook it for [thirty|forty] minutes and stir [often|from time to time].",
            "Add the sugar and [stir again|mix well].",
            "Serve the pudding with the cinnamon [on top|and a little butter].",
        ),
    ),
    "cheese toast": Dish(
        ("[two|four] slices of bread", "[some|a little] butter", "[two|four] slices of cheese"),
        (
            "Heat the oven [to two hundred degrees|until it is hot].",
            "Butter the bread and put the cheese on it.",
            "Bake it for [five|eight|ten] minutes [until the cheese melts|in the oven].",
            "Serve the toast with [a salad|tomatoes|pepper].",
        ),
    ),
    "vegetable stew": Dish(
        ("[three|four] carrots", "[two|three] potatoes", "[one cup|two cups] of beans", "[three|four] cups of water"),
        (
            "Wash and peel the carrots and the potatoes.",
            "Cut them into [thick slices|cubes|big pieces].",
            "Put them into a pot with the beans and the water.",
            "Cook the stew for [thirty|forty|fifty] minutes and add [salt|pepper|fresh herbs].",
        ),
    ),
}

LISTS: Mapping[str, tuple[str, ...]] = {
    "[Shopping list for|Things to buy for] [a party|the weekend|breakfast|the week]": (
        "[two|three|four] bottles of water", "[a loaf|two loaves] of bread", "[six|ten|twelve] eggs", "[some|a box of] tea",
        "[a piece|two pieces] of cheese", "[five|seven|nine] apples", "[a bag|two bags] of rice", "a [big|small] melon",
    ),
    "[Packing list for|What to pack for] [the beach|a week by the sea|the lake]": (
        "[one towel|two towels]", "sun cream", "a [straw|white|blue] hat", "[a good book|two books]", "sunglasses",
        "a [beach ball|kite]", "[cold drinks|a bottle of water]", "[sandwiches|fruit]",
    ),
    "[Packing list for|What to pack for] [a walk in the hills|a camping trip|the mountains]": (
        "[strong|old] boots", "a [warm|rain] jacket", "[a map|a map and a compass]", "a torch", "[a tent|a sleeping bag]",
        "[nuts and raisins|bread and cheese]", "matches", "a [small|sharp] knife",
    ),
    "[Jobs|Things to do] for [today|Saturday|the morning]": (
        "[wash|clean] the car", "water the [plants|roses|tomatoes]", "write to [grandmother|aunt Clara|uncle Jack]",
        "feed the [cat|hens|fish]", "[sweep|wash] the floor", "mend the [fence|bike|gate]", "call the [dentist|bank|school]",
        "tidy the [kitchen|desk|garage]",
    ),
}  # fmt: skip


def write(dice: Dice) -> str:
    """One recipe or one list; recipes come three times as often."""
    return dice.weighted({recipe: 3, plain_list: 1})(dice)


def recipe(dice: Dice) -> str:
    """A dish: a sentence with its ingredients, then the steps, numbered."""
    name = dice.choose(tuple(DISHES))
    dish = DISHES[name]
    heading = dice.choose(("To make {}, you need:", "How to make {}:", "Recipe for {}:"))
    needs = [f"- {need}" for need in dish.needs]
    steps = [f"{number}. {step}" for number, step in enumerate(dish.steps, 1)]
    closing = dice.choose(([], ["Enjoy your meal!"], ["This is enough for [two|three|four] people."]))
    return fill("\n".join([heading.format(name), *needs, *steps, *closing]), dice, {})


def plain_list(dice: Dice) -> str:
    """Three to six things from one list, in any order."""
    heading = dice.choose(tuple(LISTS))
    items = dice.several(LISTS[heading], dice.number(3, 6))
    return fill("\n".join([heading + ":", *(f"- {item}" for item in items)]), dice, {})
