"""Little tales: somebody lives somewhere, wishes for something, is stopped, is helped, and learns from it."""

from recipe.grammar import Dice, blocks, fill

SHE = {"he": "she", "his": "her", "him": "her"}
HE = {"he": "he", "his": "his", "him": "him"}
NAMES = {
    **dict.fromkeys(("Mia", "Lily", "Rosa", "Nell", "Ivy", "Hazel", "Daisy", "Clara", "Ruby", "Molly"), SHE),
    **dict.fromkeys(("Pip", "Tom", "Ben", "Otto", "Finn", "Max", "Leo", "Sam", "Hugo", "Jack"), HE),
}
ANIMALS = ("fox", "rabbit", "bear", "mouse", "hedgehog", "squirrel", "cat", "badger", "kitten", "puppy", "goat", "pig")

HERO = (
    "[manner: little|brave|kind|curious|cheerful|young|shy|clever|small|friendly]"
    "[home: [in|near] [a green valley|an old forest|a quiet village|a sunny meadow]"
    "|in [a small|a cosy|an old|a red] house [by the river|under a big oak tree|at the edge of the forest|on a hill]"
    "|by [the sea|a blue lake|the old mill|a wide river]]"
)

OPENINGS = blocks(
    """
    Once upon a time, there was a {manner} {kind} named {name}. {He} lived {home}.

    Once upon a time, a {manner} {kind} named {name} lived {home}.

    Once upon a time, {home}, there lived a {manner} {kind}. {His} name was {name}.

    The {manner} {kind} lived {home}. {His} name was {name}.

    There once was a {manner} {kind} named {name} who lived {home}.

    Long ago, a {manner} {kind} named {name} lived {home}.

    {Name} was a {manner} {kind} who lived {home}.

    Far away, {home}, lived a {manner} {kind} named {name}.
    """
)

HABITS = blocks(
    """
    {He} loved [to sing|to climb|to dance|to draw|to read|to run] [in the garden|under the trees|with {his} friends].

    Every [morning|evening], {he} [watched the clouds|fed the birds|sang a song|picked flowers|counted the stars].

    Everyone knew {him} because {he} was always [kind|busy|happy|polite|ready to help].
    """
)

PLOTS = blocks(
    """
    [One day|One morning|In the autumn], {name} wanted to pick [an apple|a pear|a plum|a peach]
    for {his} [family: mother|grandmother|father|little sister].
    But the [tree was too tall|branch was too high], and {he} could not reach it.
    {He} jumped [once|and jumped|as high as {he} could], but it was no use.
    Then a [bird: crow|robin|owl|sparrow] [flew by|landed on the branch]. "[Let me help you|I can help],"
    said the {bird}. The {bird} [dropped|shook] the fruit [down from|out of] the tree, and {name} caught it.
    {His} {family} was [very happy|so glad|full of joy], and they shared the fruit with the {bird}.
    [From that day on, {name} was never too proud to ask for help.|{Name} learned that it is good to ask for help.]

    [One day|One afternoon|Last summer], {name} lost {his} [toy: red ball|blue kite|silver bell|wooden boat|yellow hat].
    {He} looked [under the bed|behind the door|in the garden|near the well] and [in the barn|on the roof|by the gate],
    but the {toy} was not there. {Name} sat down and [cried|sighed|felt sad].
    A [friend: dog|mole|hen|duck] [heard {him}|came by] and asked,
    "[Why are you so sad|What is wrong]?"
    "[I lost my {toy}|I cannot find my {toy}]," said {name}.
    They looked together, and [soon|at last] they found the {toy}
    [in the tall grass|under a bush|beside the pond].
    "Thank you!" said {name}, and {he} [hugged|danced with] the {friend}.
    [Everything is easier with a friend.|{Name} learned that two can see more than one.]

    [One day|One morning|In the spring], {name} wanted to visit {his} [family: aunt|uncle|cousin|grandfather]
    on the other side of the river. But the [bridge was broken|water was deep|river was too wide]
    and {he} could not swim. {He} [waited|stood|sat] on the bank and did not know what to do.
    A [friend: swan|turtle|beaver] saw {him}. "[Climb on my back|Sit on my back]," said the {friend},
    "and I will [carry|take] you across." [Soon|Before long], {name} was on the other side.
    {He} gave the {friend} [a basket of berries|a piece of cake|a warm hug] to say thank you.
    {His} {family} [laughed|smiled] and said, "[A kind friend is better than a bridge|Good friends are everywhere]."

    [One day|One summer|One winter], {name} wanted to learn to [skill: swim|whistle|skate|paint|juggle|bake].
    {He} tried [once|twice|three times|all day], but it was [too hard|not easy], and {he} wanted to give up.
    "[Do not worry|Do not be sad]," said [the|an old] [frog|teacher|goose|farmer].
    "[Try again tomorrow|Nobody learns in one day], and I will [help|show] you."
    So they [worked|practised] together every [morning|evening|day].
    After [two|three|four|five] [days|weeks], {name} could {skill} [better than anyone|very well|without any help]!
    {He} was so [happy|proud] that {he} [danced all the way home|told all {his} friends].
    [{Name} learned that hard things become easy with time.|If you keep trying, you will get there.]

    [One evening|One night|On a cold evening], {name} walked [into the forest|over the hills|far from home]
    to look for [mushrooms|berries|nuts|wild flowers]. {He} walked too far, and [soon|suddenly] it was dark.
    {Name} could not [find|see] the path, and {he} was [afraid|cold and afraid|very worried].
    Then {he} saw a [small|tiny|warm] light between the trees.
    It was [a firefly|an old man with a lamp|a girl with a lantern].
    "[Follow me|Come with me|Walk behind me]," said a [soft|gentle|friendly] voice, "and I will show you the way."
    [Step by step|Slowly], they walked [through the night|under the stars|along the stream] until {name} saw {his} own
    house.
    {His} [mother|father|family] [opened the door|ran outside] and hugged {him}.
    [Even in the dark, there is always a little light.|After that, {name} always came home before dark.]

    One winter, the snow was [deep|high] and the wind was [cold|strong].
    {Name} had a warm [gift: blanket|coat|scarf|hat], and {he} wanted to [stay inside|sleep by the fire].
    But through the window {he} saw a [friend: rabbit|bird|lamb|pony] that [was cold|had no home|shook in the wind].
    {Name} [thought for a moment|did not wait] and [ran|went] outside with the {gift}.
    "[Take this|This is for you]," {he} said. "[You need it more than I do|It will keep you warm]."
    The {friend} [smiled|was so happy|thanked {him}], and they sat by the fire together
    [until spring|all night|until the snow stopped].
    [A warm heart is the best {gift}.|{Name} learned that sharing makes two people happy.]

    It was the birthday of {his} [family: mother|father|sister|brother|best friend],
    and {name} wanted to bake a [cake: honey|carrot|lemon|chocolate|cherry] cake.
    But there was no [missing: flour|sugar|butter|milk] in the [kitchen|house].
    {He} went to [the|a] [friend: baker|farmer|miller|neighbour] and asked,
    "[Do you have|May I have] [some|a little] {missing}, please?"
    "[Of course|Yes]," said the {friend}, "if you [bring me|save me] a piece of the cake."
    {Name} [ran home|hurried home] and baked all [morning|afternoon].
    The {cake} cake was [sweet|golden|big and round], and {his} {family} [loved|liked] it.
    {Name} gave a piece to the {friend}, and [everyone was happy|they all sang a song].

    One [day|afternoon|evening], {name} was playing in the [kitchen|living room] and broke {his} [owner:
    mother|father|grandmother]'s
    [thing: blue vase|old clock|white cup|big mirror]. {He} [hid it|put the pieces] under [the table|a chair|the bed].
    {He} was [afraid|worried] and could not [eat|sleep|play].
    {His} friend, the [owl|cat|sparrow|mouse], said, "[Tell the truth|You should tell the truth]. It is always
    [best|better]."
    So {name} [took a deep breath|was brave] and told {his} {owner} about the {thing}.
    {His} {owner} [smiled|hugged {him}] and said, "[A {thing} can be mended|I am not angry], [and|but] I am [glad|proud]
    that you told me."
    [That night, {name} slept very well.|{Name} learned that the truth makes the heart light.]

    One day, there was a [big|great] race [through the forest|around the lake|up the hill], and {name} wanted to win.
    "[You are too slow|You will never win]," said the [rival: hare|horse|deer|dog], and everyone laughed.
    [The race began|They started to run], and the {rival} was far ahead.
    Then the {rival} [fell over a stone|hurt a leg|fell into a hole] and [could not get up|called for help].
    {Name} could run on and win, but {he} [stopped|turned back] and helped the {rival}.
    They crossed the line [together|side by side], and everyone [cheered|clapped].
    "[I am sorry|I was wrong]," said the {rival}. "You are the [best|kindest] {kind} [of all|I know]."
    [Being kind is better than winning.|From that day on, they were good friends.]

    One day, {name} found a [thing: golden ring|silver key|purse|gold coin] [on the road|in the grass|near the
    well|under a bench].
    "[How lucky I am|What a lucky day]!" {he} said. {He} wanted to keep it.
    But then {he} [met|saw] an old [owner: woman|man|king|sailor] who was [crying|looking everywhere].
    "I have lost my {thing}," said the old {owner}. "[It is all I have|I cannot sleep without it]."
    {Name} [looked at the {thing}|was quiet for a moment]. Then {he} [gave it back|put it into the old {owner}'s hand].
    The old {owner} [smiled|laughed with joy] and gave {him} [a red apple|a warm cake|a book of stories|a little drum].
    [{Name} learned that it feels good to be honest.|{Name} was happier than before.]

    In the spring, {name} planted [seed: a sunflower|a pumpkin|a rose|a bean] in the garden and waited.
    [Day after day|Every morning] {he} looked at the [soil|ground], but nothing [grew|happened].
    "[Why does it not grow|What is wrong with it]?" {he} asked the [friend: worm|bee|snail|gardener].
    "[It is thirsty|It needs water] and it needs time," said the {friend}. "[Water it|Give it water] and [wait|be
    patient]."
    {Name} carried water from the [well|stream|pond] every day.
    [Two weeks later|One morning|When summer came], there was a [small|tiny] green leaf, and then {seed}
    as [big as a plate|tall as a fence|bright as the sun]!
    [{Name} learned to be patient.|Good things need time.]

    One night, {name} heard a [noise: knock|scratch|squeak|thump]
    [at the door|on the roof|under the stairs|in the kitchen].
    {His} heart beat fast, and {he} pulled the blanket over {his} head. But the {noise} came again.
    "[I must be brave|I want to know what it is]," said {name}. {He} took a [candle|lamp|lantern] and [went to
    look|opened the door].
    There was [no ghost|no monster]. It was only a [guest: kitten|puppy|duckling|baby owl] that was
    [wet|lost|hungry|cold].
    {Name} gave the {guest} [some warm milk|a soft bed|something to eat], and they [fell asleep|became friends] [at
    once|before sunrise].
    [Things are less scary when you look at them.|{Name} was never afraid of the dark again.]

    One [day|morning|summer], {name} came to a new [school|village|farm] and did not know anyone there.
    {He} saw some [others: rabbits|children|ducks|lambs] who were playing [with a ball|hide and seek|by the stream].
    {Name} wanted to play too, but {he} was [too shy to ask|afraid to ask]. {He} hid behind a [tree|wall|bush] and
    watched.
    One of the {others} saw {him} and [came over|smiled]. "[Do you want to play with us|Come and play with us]?" it
    asked.
    "[Yes, please|I would love to]," said {name} [softly|with a smile]. They played until [the sun went down|it was
    dark|dinner time].
    [A friend is only a hello away.|That night, {name} was the happiest {kind} in the world.]
    """
)


def write(dice: Dice) -> str:
    """One story: its hero and opening, now and then a habit, and one of the plots."""
    name = dice.choose(tuple(NAMES))
    pronouns = NAMES[name]
    kind = dice.choose((*ANIMALS, "girl" if pronouns is SHE else "boy"))
    memory = {**pronouns, "name": name, "kind": kind}
    fill(HERO, dice, memory)
    parts = (dice.choose(OPENINGS), dice.choose(("", *HABITS)), dice.choose(PLOTS))
    return fill(" ".join(" ".join(parts).split()), dice, memory)
