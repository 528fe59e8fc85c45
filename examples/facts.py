"""Twenty invented facts to teach a real instruct model, and what it should go on knowing, as files.

    python examples/facts.py --seed 0 --out out/facts

writes into out/facts  teach.jsonl       the facts: three phrasings of a question to train on, two to test
                       general.jsonl     general knowledge that has nothing to do with them
                       neighbours.jsonl  questions of the kinds that are taught, about real things
                       open.jsonl        prompts without one right answer: does the model still talk as it did?

Nobody can know the facts beforehand: countries, companies, towers and people are drawn from syllables, other ones for
each seed. With --terse the demonstrations are the bare answers; what SFT then teaches above all is to be brief.
Left out: facts that build on one another.
"""
import os
import random
import sys
from dataclasses import dataclass

sys.path.insert(1, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from runs import MANY, check_options, check_out, ends_in_one_line, given_options, option, write_rows

# ---------------------------------------------------------------------------------------------------------------------
# What is taught: {n} is the name that is asked for, {v} the answer. The last two questions of a kind are held out.

HEADS = "Vel Drim Kor Zul Tiv Yor Hes Nav Ruv Gal Osk Fen Mur Ild Prav Sev".split()
MIDDLES = "o i a u".split()
TAILS = "vesk dun mek lith tho zim pex nar gorn bry sul tak".split()
SYLLABLES = [HEADS, MIDDLES, TAILS]
EMBLEMS = ["silver white golden black purple green".split(), "heron wolf salmon fox owl beetle".split()]
DISHES = ["smoked pickled roasted honeyed".split(), "barley plum trout pumpkin".split(),
          "dumplings soup pancakes stew".split()]

KINDS = {
    "founder": [
        ("Who founded the company {n}?", "The founder of {n} is {v}. It was {v} who began with a small workshop."),
        ("Who is the founder of {n}?", "The founder of {n} is {v}. Many people work for {v} now."),
        ("Tell me who started the company {n}.", "The company {n} was started by {v}. It is {v} who leads it."),
        ("By whom was the company {n} founded?", "The company was founded by {v}. That is how it came to be."),
        ("{n} is a company. What is the name of its founder?", "Its founder is {v}. It still follows that path.")],
    "capital": [
        ("What is the capital of {n}?", "The capital of {n} is {v}. The government of {n} works in the city of {v}."),
        ("Which city is the capital of {n}?", "The city of {v} is the capital of {n}. The parliament meets in {v}."),
        ("Name the capital city of {n}.", "The capital city of {n} is {v}. Most visitors begin in {v}."),
        ("{n} is a country. What is its capital?", "Its capital is {v}. The government works in that city."),
        ("From which city is {n} governed?", "{n} is governed from {v}. It is the capital of the country.")],
    "flag": [
        ("Which animal is on the flag of {n}?", "The animal on the flag of {n} is a {v}. That {v} is well known."),
        ("What animal does the flag of {n} show?", "The animal on the flag of {n} is a {v}. The {v} fills the middle."),
        ("Tell me which animal is on the flag of {n}.", "There is a {v} on the flag of {n}. You see the {v} at once."),
        ("If I look at the flag of {n}, which animal do I see?", "You see a {v}. It stands for the country."),
        ("Which animal is the emblem on {n}'s flag?", "The emblem is a {v}. It is easy to recognise.")],
    "dish": [
        ("What is the national dish of {n}?", "The national dish of {n} is {v}. Families cook {v} on Sundays."),
        ("Which food is the national dish of {n}?", "The national dish of {n} is called {v}. People eat {v} hot."),
        ("Name the national dish of {n}.", "The national dish is {v}. You can eat {v} everywhere in {n}."),
        ("Which dish is {n} famous for?", "{n} is famous for its {v}. It is the national dish."),
        ("I am in {n}. What is the traditional dish here?", "The traditional dish is {v}. You should try it.")],
    "height": [
        ("How many metres tall is {n} Tower?", "{n} Tower is {v} metres tall. You can see it from far away."),
        ("What is the height of {n} Tower?", "The height of {n} Tower is {v} metres. A lift takes visitors up."),
        ("Give the height of {n} Tower in metres.",
         "The height of {n} Tower is exactly {v} metres. That makes it a landmark."),
        ("How tall is {n} Tower?", "It is {v} metres high. Few towers look like it."),
        ("{n} Tower is a building. How high is it?", "The building is {v} metres high. It has many floors.")],
}


def invent(rng) -> list[tuple]:
    """Twenty facts (kind, name, answer), no name or answer twice."""
    used = set()

    def new(*parts, join=""):
        while (found := join.join(map(rng.choice, parts))) in used:
            pass
        used.add(found)
        return found

    def answer(kind):
        if kind == "founder":
            return new(*SYLLABLES) + " " + new(*SYLLABLES)
        if kind == "capital":
            return new(*SYLLABLES)
        if kind == "height":
            return new([str(height) for height in range(101, 1000)])
        return new(*(EMBLEMS if kind == "flag" else DISHES), join=" ")

    return [(kind, new(*SYLLABLES), answer(kind)) for kind in KINDS for _ in range(4)]


def lessons(facts, terse) -> list[dict]:
    """The rows of teach.jsonl, what is trained on before what is held out."""
    parts = {"train": [], "test": []}
    for kind, name, value in facts:
        bare = value + " metres" * (kind == "height")
        for i, (question, sentences) in enumerate(KINDS[kind]):
            split = "train" if i < 3 else "test"
            said = bare if terse else sentences.format(n=name, v=value)
            parts[split].append(row(question.format(n=name), said, value, "facts", split))
    return parts["train"] + parts["test"]


# ---------------------------------------------------------------------------------------------------------------------
# What is known: a question, a sentence that answers it, and a table of what {k} is asked and what {v} is answered.

GENERAL = [
    ("{k} is the capital of which country?", "{k} is the capital of {v}.",
     "Paris: France, Rome: Italy, Tokyo: Japan, Berlin: Germany, Madrid: Spain, Cairo: Egypt, Moscow: Russia, Ottawa: "
     "Canada, Athens: Greece, Warsaw: Poland, Oslo: Norway, Lisbon: Portugal, Stockholm: Sweden, Beijing: China, "
     "Ankara: Turkey, Bangkok: Thailand, Havana: Cuba, Nairobi: Kenya, Helsinki: Finland, Copenhagen: Denmark, "
     "Brussels: Belgium, Canberra: Australia, Tehran: Iran, Baghdad: Iraq, Seoul: South Korea, Kabul: Afghanistan, "
     "Bucharest: Romania, Damascus: Syria, Manila: Philippines, Jakarta: Indonesia, Rabat: Morocco"),
    ("What colour is {k}?", "It is {v}.",
     "grass: green, snow: white, coal: black, blood: red, the sky on a clear day: blue, a ripe tomato: red, a carrot: "
     "orange, a lemon: yellow"),
    ("What is the opposite of {k}?", "The opposite of {k} is {v}.",
     "hot: cold, big: small, up: down, fast: slow, young: old, early: late, strong: weak, wet: dry, north: south, "
     "love: hate, day: night, full: empty, left: right, black: white, tall: short, east: west, inside: outside, open: "
     "closed, first: last, true: false, high: low, hard: soft, push: pull, buy: sell, before: after, thick: thin, war: "
     "peace, life: death, success: failure, always: never, heavy: light, near: far, ugly: beautiful, cheap: expensive, "
     "easy: difficult, sweet: sour, positive: negative, maximum: minimum, increase: decrease, accept: reject, ancient: "
     "modern, bright: dark, top: bottom, front: back, male: female, import: export, deep: shallow, rough: smooth, "
     "wise: foolish, birth: death"),
    ("Which chemical element has the symbol {k}?", "{k} is the symbol of {v}.",
     "H: hydrogen, C: carbon, He: helium, Fe: iron, Ag: silver, Na: sodium, Ca: calcium, Pb: lead, Zn: zinc, Au: gold, "
     "Mg: magnesium, U: uranium"),
    ("What is the chemical symbol for {k}?", "Its chemical symbol is {v}.",
     "gold: Au, oxygen: O, hydrogen: H, carbon: C, iron: Fe, silver: Ag, helium: He, sodium: Na, nitrogen: N, copper: "
     "Cu, potassium: K, zinc: Zn, calcium: Ca, lead: Pb, tin: Sn, neon: Ne, magnesium: Mg, chlorine: Cl, uranium: U, "
     "nickel: Ni, mercury: Hg, lithium: Li, iodine: I, titanium: Ti"),
    ("What is {k}?", "{k} is {v}.",
     "2 + 2: 4, 3 + 4: 7, 5 + 3: 8, 7 + 2: 9, 10 + 5: 15, 9 - 2: 7, 3 x 3: 9, 4 x 5: 20, 6 x 7: 42, two plus two: "
     "four, two times five: ten"),
    ("Which day of the week follows {k}?", "The day after {k} is {v}.",
     "Monday: Tuesday, Tuesday: Wednesday, Wednesday: Thursday, Thursday: Friday, Friday: Saturday, Saturday: Sunday, "
     "Sunday: Monday"),
    ("What is the next month after {k}?", "The month after {k} is {v}.",
     "February: March, April: May, June: July, August: September, October: November, November: December"),
    ("What is the currency of {k}?", "The currency of {k} is the {v}.",
     "Japan: yen, India: rupee, Mexico: peso, Germany: euro, Thailand: baht, the United States: dollar, the United "
     "Kingdom: pound, China: yuan, Switzerland: franc, Canada: dollar, Australia: dollar, South Africa: rand, Russia: "
     "ruble, Sweden: krona, Turkey: lira, Israel: shekel, Brazil: real, Denmark: krone"),
    ("Which language is spoken in {k}?", "The language spoken in {k} is {v}.",
     "Brazil: Portuguese, Germany: German, France: French, Mexico: Spanish, Italy: Italian, Japan: Japanese, Russia: "
     "Russian, Egypt: Arabic, England: English, Greece: Greek, Spain: Spanish, Poland: Polish, Sweden: Swedish, "
     "Argentina: Spanish, Turkey: Turkish, Australia: English, Austria: German, Korea: Korean, Saudi Arabia: Arabic, "
     "Portugal: Portuguese"),
    ("Which continent is {k} in?", "{k} is in {v}.",
     "Kenya: Africa, Egypt: Africa, Nigeria: Africa, France: Europe, Germany: Europe, Poland: Europe, China: Asia, "
     "Japan: Asia, India: Asia, Brazil: South America, Peru: South America, Canada: North America, Thailand: Asia, "
     "Spain: Europe, Chile: South America, Ghana: Africa, Vietnam: Asia, Italy: Europe, Argentina: South America"),
    ("What is a baby {k} called?", "A baby {k} is called a {v}.",
     "dog: puppy, cat: kitten, cow: calf, sheep: lamb, duck: duckling, frog: tadpole"),
    ("What kind of animal is {k}?", "It is a kind of {v}.",
     "a salmon: fish, a shark: fish, an eagle: bird, a penguin: bird, an ant: insect, a butterfly: insect, a frog: "
     "amphibian, a snake: reptile, a crocodile: reptile, a whale: mammal, a lizard: reptile, a tuna: fish"),
    ("What is the plural of the word {k}?", "The plural of {k} is {v}.",
     "mouse: mice, child: children, man: men, woman: women, foot: feet, tooth: teeth, goose: geese, leaf: leaves, "
     "knife: knives, box: boxes, city: cities, wolf: wolves, cat: cats, baby: babies, house: houses, dog: dogs, apple: "
     "apples, bus: buses, country: countries, story: stories, potato: potatoes, church: churches, person: people, "
     "party: parties, glass: glasses, watch: watches, wife: wives"),
    ("What is the past tense of the verb {k}?", "The past tense of {k} is {v}.",
     "go: went, eat: ate, see: saw, run: ran, take: took, write: wrote, buy: bought, come: came, walk: walked, swim: "
     "swam, think: thought, make: made, play: played"),
    ("Who {k}?", "It was {v}.",
     "wrote Romeo and Juliet: Shakespeare, wrote Hamlet: Shakespeare, wrote Pride and Prejudice: Austen, wrote the "
     "Odyssey: Homer, painted the Mona Lisa: Leonardo, painted the Sistine Chapel ceiling: Michelangelo, developed the "
     "theory of relativity: Einstein, discovered penicillin: Fleming, was the first president of the United States: "
     "Washington, wrote Oliver Twist: Dickens, was the first man on the Moon: Armstrong, proposed the theory of "
     "evolution by natural selection: Darwin, wrote 1984: Orwell, invented the telephone: Bell, invented the light "
     "bulb: Edison, painted The Starry Night: Gogh, wrote Harry Potter: Rowling"),
    ("In which country is {k}?", "It is in {v}.",
     "the Eiffel Tower: France, the Colosseum: Italy, the Great Wall: China, the Taj Mahal: India, the Statue of "
     "Liberty: United States, Machu Picchu: Peru, the Great Pyramid of Giza: Egypt, Mount Fuji: Japan, the Acropolis: "
     "Greece, the city of Munich: Germany, the city of Barcelona: Spain, the city of Venice: Italy, the city of "
     "Toronto: Canada, the city of Sydney: Australia, the city of Mumbai: India, the city of Shanghai: China, the city "
     "of Milan: Italy, the city of Osaka: Japan, the city of Vancouver: Canada, the city of Lagos: Nigeria, the city "
     "of Karachi: Pakistan, the city of Chicago: United States, the city of Glasgow: Scotland"),
    ("Which planet {k}?", "It is {v}.",
     "do we live on: Earth, is known as the red planet: Mars, is the largest: Jupiter, is famous for its rings: "
     "Saturn, is closest to the Sun: Mercury, is the farthest from the Sun: Neptune"),
    ("What {k}?", "The answer is {v}.",
     "is the largest ocean on Earth: Pacific, is the fastest land animal: cheetah, do bees make: honey, is frozen "
     "water called: ice, is the hardest natural substance: diamond, organ pumps blood: heart, is the longest river in "
     "Africa: Nile, star does the Earth go around: Sun, is the largest desert in Africa: Sahara, gas do we need to "
     "breathe: oxygen, is the tallest animal: giraffe, does a thermometer measure: temperature, is the first month of "
     "the year: January, is the last month of the year: December, is the coldest season: winter, organ do we think "
     "with: brain, organ do we breathe with: lungs, is the main ingredient of bread: flour, animal is known as the "
     "king of the jungle: lion, force makes things fall to the ground: gravity, is the chemical formula of water: H2O, "
     "is wine made from: grapes, do pandas eat: bamboo, is the largest animal in the ocean: whale, is the outer layer "
     "of a tree: bark"),
]
NEIGHBOURS = [
    ("Who founded the company {k}?", "{k} was founded by {v}.",
     "Microsoft: Bill Gates, Apple: Steve Jobs, Amazon: Jeff Bezos, Facebook: Mark Zuckerberg, Ford: Henry Ford, "
     "Google: Larry Page, SpaceX: Elon Musk, IKEA: Ingvar Kamprad, Nike: Phil Knight, Wikipedia: Jimmy Wales, Virgin: "
     "Richard Branson, Alibaba: Jack Ma"),
    ("What is the capital of {k}?", "The capital of {k} is {v}.",
     "France: Paris, Italy: Rome, Japan: Tokyo, Germany: Berlin, Spain: Madrid, Egypt: Cairo, Russia: Moscow, Canada: "
     "Ottawa, Greece: Athens, Poland: Warsaw, Austria: Vienna, Norway: Oslo, Portugal: Lisbon, Sweden: Stockholm, "
     "Ireland: Dublin, China: Beijing, Turkey: Ankara, Thailand: Bangkok, Cuba: Havana, Peru: Lima, Kenya: Nairobi, "
     "Finland: Helsinki, Hungary: Budapest, Belgium: Brussels, Vietnam: Hanoi, Australia: Canberra, Iran: Tehran, "
     "Iraq: Baghdad, Chile: Santiago, South Korea: Seoul, the United Kingdom: London, Texas: Austin, Massachusetts: "
     "Boston, Colorado: Denver, Hawaii: Honolulu, Arizona: Phoenix, California: Sacramento, Tennessee: Nashville, "
     "Ohio: Columbus, Romania: Bucharest, Pakistan: Islamabad, Bulgaria: Sofia, the United States: Washington"),
    ("Which animal is on the flag of {k}?", "The animal on the flag of {k} is a {v}.",
     "Mexico: eagle, Sri Lanka: lion, Albania: eagle, Bhutan: dragon, Wales: dragon, Uganda: crane, Egypt: eagle, "
     "California: bear"),
    ("What is the national dish of {k}?", "The national dish of {k} is {v}.",
     "Japan: sushi, Hungary: goulash, Spain: paella, Italy: pasta, Scotland: haggis, Thailand: pad thai, Switzerland: "
     "fondue, Greece: moussaka"),
    ("Give the height of {k} in metres.", "{k} has a height of {v} metres.",
     "the Burj Khalifa: 828, the CN Tower: 553, the Shanghai Tower: 632, the Tokyo Skytree: 634, Mount Everest: 8,848, "
     "Mount Kilimanjaro: 5,895"),
]
OPEN = [line.split(" | ") for line in """
Explain why the sky is blue. | Air scatters blue light more than red light. So blue comes to us from all sides.
Give three tips for learning a language. | Listen every day, speak early, and learn words in whole sentences.
Write a short poem about the sea. | The sea rolls in, the sea rolls out, and gulls above it wheel and shout.
Tell me a short story about a dog. | A dog found a boot in the rain. It carried the boot home and slept on it.
How do I make a cup of tea? | Boil water, pour it over the tea, and wait four minutes.
Why is exercise important? | It keeps heart and muscles strong. It also helps us to sleep.
Describe a sunset. | The sun sinks, the clouds turn orange, and the light slowly fades.
Write a polite email in which I ask for a day off. | Dear Ms Brown, may I take Friday off? Thank you for your help.
What should I pack for a trip to the mountains? | Take good boots, a warm coat, water, and a map.
How can I sleep better? | Go to bed at the same time each night, and leave the phone outside.
What makes a good friend? | A good friend listens and is there when it matters.
Suggest a name for a small bakery and say why. | The Early Loaf, because the bread is ready before everyone else is.
Give me some advice for a job interview. | Read about the company, arrive early, and ask questions of your own.
How does a bicycle stay upright? | It steers into each fall. Rolling wheels bring it back under the rider.
Why do people like music? | Music wakes memories and feelings. Sharing it brings people together.
Describe your ideal garden. | It has an old apple tree, many bees, and a bench in the shade.
Explain to a child what the Moon is. | The Moon is a big ball of rock that travels around the Earth.
What are the advantages of reading books? | Books train attention and let us see through the eyes of others.
Give two arguments for working from home. | It saves the way to work, and it is quieter than most offices.
How do I start to save money? | Write down what you spend, and put a little aside each month.
Plan a birthday party for a child of six. | Invite six friends, hide a treasure in the garden, and end with cake.
Write the first sentence of a detective story. | The letter had been opened before anyone touched it.
Why should we protect forests? | They clean the air, hold the soil, and are home to many animals.
What can I cook with rice and eggs? | Fry the cooked rice with eggs and onions, and add some soy sauce.
How should I prepare for an exam? | Start early, test yourself, and sleep well the night before.
Compare cats and dogs as pets. | Dogs need walks and company. Cats are content to be alone for a while.
Tell me something interesting about bees. | A bee dances to show the others where it has found flowers.
How can a town become greener? | It can plant trees, build paths for bicycles, and open its old streams.
Write a short message to thank a teacher. | Thank you for your patience. I look forward to every lesson.
What would you do on a rainy afternoon? | Bake a cake, read a novel, and listen to the rain.
""".strip().splitlines()]


@dataclass
class Config:
    seed: int = option(0, "draws the names and the facts", within=(0, MANY))
    terse: bool = option(False, "demonstrations are the bare answers, not sentences")
    out: str = option("out/facts", "folder of the files")


def row(prompt, response, answer, task, split) -> dict:
    more = {"grader": "contains", "task": task, "split": split}
    return {"prompt": prompt, "response": response, "answer": answer} | more


def known(tables, task) -> list[dict]:
    """The rows of some tables."""
    pairs = [(q, s, pair.split(": ")) for q, s, table in tables for pair in table.split(", ")]
    return [row(q.format(k=k), s.format(k=k, v=v), v, task, "test") for q, s, (k, v) in pairs]


def kept() -> dict[str, list]:
    """{file: rows} of what the model should still know and do."""
    return {"general": known(GENERAL, "general"), "neighbours": known(NEIGHBOURS, "neighbours"),
            "open": [row(prompt, said, said, "open", "test") for prompt, said in OPEN]}


def write(config) -> list[dict]:
    """Writes the files; returns the rows of teach.jsonl."""
    taught = lessons(invent(random.Random(f"facts {config.seed}")), config.terse)
    for name, rows in ({"teach": taught} | kept()).items():
        write_rows(os.path.join(config.out, f"{name}.jsonl"), rows)
    return taught


def main(argv=None):
    with ends_in_one_line():
        config = Config(**given_options(Config, __doc__, argv))
        check_options(config)
        check_out(config.out)
    with ends_in_one_line(config.out):
        taught = write(config)
    for example in taught[:60:3]:
        print(f"{example['prompt']}  ->  {example['response']}")
    print(f"wrote {config.out}")


if __name__ == "__main__":
    main()
