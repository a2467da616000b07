"""Pairs of English words with opposite meanings, compiled for this project; each stands for the other."""

_PAIRS = """
above below, absent present, accept reject, accepted rejected, active inactive, admit deny, admitted denied, advance
retreat, advantage disadvantage, advantages disadvantages, after before, afterwards beforehand, agree disagree, agreed
disagreed, alive dead, allies enemies, allow forbid, allowed forbidden, allows forbids, ally enemy, always never,
ancient modern, apart together, appear disappear, appeared disappeared, appears disappears, approve disapprove,
approved disapproved, arrival departure, arrive depart, arrived departed, artificial natural, ascending descending,
asleep awake, attacked defended, attackers defenders, attacking defending, backward forward, bad good, began ended,
begins ends, benefit harm, benefits harms, best worst, better worse, big small, bigger smaller, biggest smallest,
birth death, born killed, borrow lend, bottom top, bought sold, broad narrow, built razed, buy sell, buyer seller,
buyers sellers, buying selling, cause prevent, caused prevented, causes prevents, causing preventing, cheap costly,
close distant, closed opened, closest farthest, cold hot, colder hotter, coldest hottest, common rare, commonly
rarely, completely partially, complex simple, compulsory voluntary, connect disconnect, connected disconnected,
contract expand, contracted expanded, cool warm, cooler warmer, coolest warmest, create destroy, created destroyed,
creates destroys, creating destroying, creation destruction, dangerous safe, dark light, death life, decline growth,
declined grew, decrease increase, decreased increased, decreases increases, decreasing increasing, deep shallow,
demand supply, die live, died survived, difference similarity, differences similarities, different identical,
different same, difficult easy, direct indirect, directly indirectly, dissimilar similar, divide unite, divided
united, domestic foreign, downward upward, dry wet, earlier later, earliest latest, early late, east west, eastern
western, empty full, endanger protect, endangered protected, enemies friends, enemy friend, enlarge reduce, enlarged
reduced, enter leave, exclude include, excluded included, excludes includes, excluding including, export import,
exported imported, exports imports, external internal, fail succeed, failed succeeded, failure success, fall rise,
falls rises, false true, famous unknown, far near, fast slow, faster slower, fastest slowest, fell rose, female male,
few many, final initial, finite infinite, first last, forget remember, former latter, frequent infrequent, frequently
seldom, fully partly, gain loss, gains losses, grow shrink, growing shrinking, guilty innocent, happy unhappy, hard
soft, harmful harmless, heavier lighter, heaviest lightest, heavy light, helped hindered, helps hinders, high low,
higher lower, highest lowest, highly slightly, illegal legal, important unimportant, impossible possible, inner outer,
inside outside, insufficient sufficient, invalid valid, irregular regular, joined left, known unknown, large small,
larger smaller, largest smallest, later sooner, least most, less more, likely unlikely, liquid solid, long short,
longer shorter, longest shortest, lose win, loser winner, losers winners, loses wins, lost won, loud quiet, lower
upper, lowered raised, majority minority, maximal minimal, maximum minimum, multiple single, narrow wide, narrower
wider, negative positive, new old, newer older, newest oldest, north south, northeast southwest, northern southern,
northwest southeast, official unofficial, often rarely, old young, older younger, oldest youngest, oppose support,
opposed supported, opposes supports, opposing supporting, opposition support, over under, parallel perpendicular,
peace war, permanent temporary, permit prohibit, permits prohibits, permitted prohibited, poor rich, poor wealthy,
poorer richer, poorest richest, popular unpopular, powerful powerless, private public, pull push, rural urban, seldom
usually, separately together, short tall, shorter taller, shortest tallest, smart stupid, start stop, started stopped,
starting stopping, starts stops, strength weakness, strengths weaknesses, strong weak, stronger weaker, strongest
weakest, successful unsuccessful, thick thin, thicker thinner, useful useless
"""


def _table() -> dict[str, str]:
    table: dict[str, str] = {}
    for pair in _PAIRS.replace("\n", " ").split(","):
        first, second = pair.split()
        table.setdefault(first, second)
        table.setdefault(second, first)
    return table


ANTONYMS = _table()
