"""Lists: dishes with what they need and how they are made, and things to buy, to pack or to do."""

from recipe.grammar import Dice, blocks, fill

DISHES = blocks(
    """
    pancakes
    - [one cup|two cups] of flour
    - [two|three] eggs
    - [a little|one cup of] milk
    - [some|a little] butter
    1. Mix the flour, the eggs and the milk [in a bowl|until smooth].
    2. Melt the butter in a [hot pan|big pan].
    3. Fry each pancake for [one minute|two minutes] on both sides.
    4. Serve them with [honey|jam|sugar|fresh berries].

    tomato soup
    - [four|six|eight] tomatoes
    - one onion
    - [some|a spoon of] oil
    - [two|three] cups of water
    1. Cut the tomatoes and the onion [into small pieces|finely].
    2. Fry the onion in the oil [for two minutes|until it is golden].
    3. Add the tomatoes and the water and cook for [ten|fifteen|twenty] minutes.
    4. Serve the soup with [bread|cream|basil].

    lemon tea
    - [one|two] tea bags
    - [half a|one] lemon
    - [a spoon|two spoons] of honey
    - [one cup|a pot] of hot water
    1. Pour the hot water over the tea [slowly|carefully].
    2. Wait for [three|four|five] minutes.
    3. Add the juice of the lemon and stir in the honey.
    4. Drink it [hot|while it is warm|with ice].

    fruit salad
    - [two|three] apples
    - [one banana|two bananas]
    - [some grapes|one orange]
    - [a little|some] lemon juice
    1. Wash the fruit [well|under cold water].
    2. Cut everything into [small|little] pieces.
    3. Pour the lemon juice over the fruit.
    4. [Chill the salad for an hour|Eat it at once|Serve it with cream].

    fried eggs
    - [two|three|four] eggs
    - [a little|some] butter
    - [a pinch of|some] salt
    1. Melt the butter in a [small|hot] pan.
    2. Break the eggs into the pan [one by one|carefully].
    3. Fry them for [two|three|four] minutes.
    4. Add the salt and serve them [on toast|with bread|with beans].

    potato salad
    - [six|eight|ten] potatoes
    - one onion
    - [three|four] spoons of oil
    - [two spoons of|some] vinegar
    1. Boil the potatoes for [twenty|thirty] minutes and [peel them|let them cool].
    2. Cut the potatoes [into slices|into cubes].
    3. Chop the onion and mix it with the oil and the vinegar.
    4. Stir everything [gently|well] and [wait for an hour|serve it cold].

    apple cake
    - [three|four] apples
    - [two|three] cups of flour
    - [one cup|half a cup] of sugar
    - [two|three] eggs
    1. Peel the apples and cut them [into slices|into small pieces].
    2. Mix the flour, the sugar and the eggs [in a bowl|until smooth].
    3. Fold in the apples and pour everything into a [round|square] tin.
    4. Bake the cake for [forty|fifty|sixty] minutes.

    rice pudding
    - [one cup|half a cup] of rice
    - [three|four] cups of milk
    - [two|three] spoons of sugar
    - [some|a little] cinnamon
    1. Boil the milk [slowly|in a big pot] and add the rice.
    2. Cook it for [thirty|forty] minutes and stir [often|from time to time].
    3. Add the sugar and [stir again|mix well].
    4. Serve the pudding with the cinnamon [on top|and a little butter].

    cheese toast
    - [two|four] slices of bread
    - [some|a little] butter
    - [two|four] slices of cheese
    1. Heat the oven [to two hundred degrees|until it is hot].
    2. Butter the bread and put the cheese on it.
    3. Bake it for [five|eight|ten] minutes [until the cheese melts|in the oven].
    4. Serve the toast with [a salad|tomatoes|pepper].

    vegetable stew
    - [three|four] carrots
    - [two|three] potatoes
    - [one cup|two cups] of beans
    - [three|four] cups of water
    1. Wash and peel the carrots and the potatoes.
    2. Cut them into [thick slices|cubes|big pieces].
    3. Put them into a pot with the beans and the water.
    4. Cook the stew for [thirty|forty|fifty] minutes and add [salt|pepper|fresh herbs].
    """
)
CLOSINGS = ("", "\nEnjoy your meal!", "\nThis is enough for [two|three|four] people.")

LISTS = blocks(
    """
    [Shopping list for|Things to buy for] [a party|the weekend|breakfast|the week]:
    - [two|three|four] bottles of water
    - [a loaf|two loaves] of bread
    - [six|ten|twelve] eggs
    - [some|a box of] tea
    - [a piece|two pieces] of cheese
    - [five|seven|nine] apples
    - [a bag|two bags] of rice
    - a [big|small] melon

    [Packing list for|What to pack for] [the beach|a week by the sea|the lake]:
    - [one towel|two towels]
    - sun cream
    - a [straw|white|blue] hat
    - [a good book|two books]
    - sunglasses
    - a [beach ball|kite]
    - [cold drinks|a bottle of water]
    - [sandwiches|fruit]

    [Packing list for|What to pack for] [a walk in the hills|a camping trip|the mountains]:
    - [strong|old] boots
    - a [warm|rain] jacket
    - [a map|a map and a compass]
    - a torch
    - [a tent|a sleeping bag]
    - [nuts and raisins|bread and cheese]
    - matches
    - a [small|sharp] knife

    [Jobs|Things to do] for [today|Saturday|the morning]:
    - [wash|clean] the car
    - water the [plants|roses|tomatoes]
    - write to [grandmother|aunt Clara|uncle Jack]
    - feed the [cat|hens|fish]
    - [sweep|wash] the floor
    - mend the [fence|bike|gate]
    - call the [dentist|bank|school]
    - tidy the [kitchen|desk|garage]
    """
)


def write(dice: Dice) -> str:
    """One recipe or one list; recipes come three times as often."""
    return dice.weighted({recipe: 3, plain_list: 1})(dice)


def recipe(dice: Dice) -> str:
    """A dish: what it needs, then the steps, numbered."""
    name, contents = dice.choose(DISHES).split("\n", 1)
    heading = dice.choose(("To make {}, you need:", "How to make {}:", "Recipe for {}:"))
    return fill(f"{heading.format(name)}\n{contents}{dice.choose(CLOSINGS)}", dice, {})


def plain_list(dice: Dice) -> str:
    """Three to six things from one list, in any order."""
    heading, *items = dice.choose(LISTS).split("\n")
    return fill("\n".join([heading, *dice.several(items, dice.number(3, 6))]), dice, {})
