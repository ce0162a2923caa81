"""Two people talk: small scenes at the door, in the shop, on the telephone; every line has a speaker."""

from recipe.grammar import Dice, blocks, fill

NAMES = ("Anna", "Paul", "Emma", "Mark", "Julia", "Peter", "Sara", "David", "Laura", "Simon", "Nina", "Tim")

GREETINGS = blocks(
    """
    {a}: [Hello|Hi|Good morning|Good evening], {b}! How are you[ today|]?
    {b}: [I am fine, thank you|Very well, thanks|A little tired, but fine|Never better].

    {a}: [Hello|Hi], {b}! [It is good to see you|I have not seen you for a long time|What a nice surprise].
    {b}: [Hello|Hi], {a}! [It is good to see you too|I have been away|How nice to meet you here].

    {a}: [Excuse me|Sorry], {b}, do you have [a minute|some time|a moment]?
    {b}: [Of course|Sure|Yes, I do]. [What is it|What can I do for you|How can I help]?
    """
)

SCENES = blocks(
    """
    {a}: Have you seen my [thing: keys|glasses|gloves|shoes|tickets]? I [cannot find them|have looked everywhere].
    {b}: [Let me think|Hmm]. Did you look [under the sofa|in the car|on the kitchen table|in your coat]?
    {a}: Yes, but they are not there. [I need them now|I am already late].
    {b}: Wait, here they are!
        Your {thing} were [in the fridge|behind the lamp|under the newspaper|on your head the whole time].
    {a}: [Thank you so much|You are the best|How silly of me]!
    {b}: [Not at all|It can happen to anyone|Now hurry up].

    {a}: What is the weather like [today|this morning|tomorrow]?
    {b}: It [is sunny and warm|is cold but dry|looks very nice]. Why do you ask?
    {a}: I want to go [trip: to the beach|to the park|to the mountains|to the zoo]. Do you want to come with me?
    {b}: [I would love to|That is a great idea|Yes, please]! [When do we leave|What time do we start]?
    {a}: At [eight|nine|ten|eleven]. [Bring something to drink|Do not forget your hat|I will make sandwiches].
    {b}: [Good|Perfect|All right]. I have not been {trip} for [months|years|a long time].

    {a}: Shall we [plan: play football|go for a walk|have a picnic|ride our bikes] [this afternoon|after lunch]?
    {b}: I am afraid we cannot. It is [raining|snowing|very windy].
    {a}: [What a pity|Oh no|That is sad]. Then let us stay at home
        and [play cards|bake a cake|watch a film|read a book].
    {b}: [Good idea|I like that]. We can {plan} [tomorrow|next week|on Sunday].

    {a}: I would like [two|three|four|six] [goods: apples|rolls|lemons|eggs|tomatoes], please.
    {b}: [Here you are|Certainly]. [Would you like anything else|Anything else]?
    {a}: [Yes, a bottle of milk, please|Yes, some cheese, please|No, that is all]. How much is it?
    {b}: That is [three|four|five|seven|eight] [pounds|dollars|euros], please.
    {a}: Here is the money. [Are the {goods} fresh?
    {b}: Yes, [they came in this morning|very fresh]|Where do the {goods} come from?
    {b}: [From the farm down the road|From Spain]]. [Have a nice day|See you soon]!

    {a}: [Excuse me|Sorry], how do I get to the [place: station|museum|library|post office|hospital]?
    {b}: Go straight on and turn [way: left|right] at the [church|bridge|bakery|school].
    {a}: So I turn {way}. Is it far?
    {b}: No, only [five|ten|fifteen] minutes [on foot|by bus|if you walk fast].
        You will see the {place} on your [left|right].
    {a}: [Thank you very much|Thanks for your help|That is very kind of you].
    {b}: [You are welcome|Not at all|Have a good trip]!

    {a}: What are you reading?
    {b}: It is a book about [topic: pirates|the moon|a lost dog|dragons|a brave doctor].
    {a}: [Is it good|Do you like it]?
    {b}: [Yes, very much|It is wonderful|It is a little long, but good].
        I [read half of it last night|cannot stop reading|am nearly at the end].
    {a}: [May I borrow it|Can I have it] when you are done?
    {b}: [Of course|Sure], but [be careful with it|bring it back soon|do not read the end first].
        Not everybody likes stories about {topic}.

    {a}: I am [so|very] hungry. What is for [lunch|dinner|supper]?
    {b}: We have [food: tomato soup|fish and rice|potato salad|noodles|bean stew].
    {a}: [I love {food}|{Food} again|That sounds good]! [When will it be ready|Is it ready]?
    {b}: In [five|ten|twenty] minutes. [You can set the table|Please wash your hands|Call the others, please].
    {a}: [All right|I will do that|Yes, right away]. [It smells very good|Thank you for cooking].
    {b}: [I hope you like it|Enjoy your meal|There is enough for everyone].

    {a}: You look [pale|tired|unwell]. What is the matter?
    {b}: I have a [pain: headache|sore throat|bad cold|fever]. It [began last night|started this morning].
    {a}: Then you should [stay in bed|see a doctor|drink hot tea|get some rest].
    {b}: But I have to [work|go to school|finish my homework]!
    {a}: No, with a {pain} you stay at home. I will [bring you some soup|call the office|look after you].
    {b}: [Thank you|You are right], {a}. [You are a good friend|I feel better already].

    {a}: I am having a party on [day: Friday|Saturday|Sunday]. [Can you come|Would you like to come]?
    {b}: [Yes, I would love to|Of course I can|With pleasure]! What shall I bring?
    {a}: [Just bring yourself|Some music would be nice|Could you bring a salad|A cake would be great].
    {b}: [No problem|I can do that|All right]. [Who else is coming?
    {a}: [Nearly everyone we know|Only a few friends|My cousins and some neighbours]|What time does it begin?
    {a}: [At seven|At half past eight|After sunset]].
    {b}: [Great|Lovely]! See you on {day}, {a}.

    {a}: [What a nice|Look, what a lovely|Oh, what a big] [pet: dog|cat|rabbit|parrot]! What is its name?
    {b}: Its name is [pet_name: Biscuit|Shadow|Ginger|Button|Captain].
    {a}: How old is {pet_name}?
    {b}: [Two|Three|Five|Seven] years old.
        {Pet_name} likes to [sleep all day|eat cheese|run around the garden|sit on my shoes].
    {a}: I would like to have a {pet} too, but
        [my flat is too small|I work too much|my sister is afraid of animals].
    {b}: [You can visit us at any time|Come and play with {pet_name} whenever you like].
    """
)

FAREWELLS = (
    "",
    "\n{a}: [Goodbye|Bye|See you soon|Take care], {b}!\n{b}: [Goodbye|Bye|See you], {a}!",
)


def write(dice: Dice) -> str:
    """One conversation: a greeting or none, a scene, a farewell or none."""
    a, b = dice.several(NAMES, 2)
    greeting = dice.choose(("", *(text + "\n" for text in GREETINGS)))
    return fill(greeting + dice.choose(SCENES) + dice.choose(FAREWELLS), dice, {"a": a, "b": b})
