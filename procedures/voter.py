"""voter: a vote is three reads and three writes, all by key. After VoltDB's workload of that name.

Before the first vote: `initialize`, which writes what every partition holds a copy of. Totals are counted in every
partition (`results`, `count_votes`), and the caller adds them up.
"""

from collections import Counter

from voltpy import procedure

VOTE_ACCEPTED, INVALID_CONTESTANT, OVER_THE_LIMIT = 0, 1, 2
UNKNOWN_STATE = "XX"

CONTESTANTS = [
    "Alma Reyes", "Bo Lindqvist", "Chidi Okafor", "Dana Whitfield", "Emre Yilmaz", "Freya Holm",
    "Goran Petrov", "Hana Mori", "Ines Carvalho", "Jack Delaney", "Kavya Rao", "Leo Fontaine",
]  # fmt: skip

_AREA_CODES = """
AK 907
AL 205 251 256 334
AR 479 501 870
AZ 480 520 602 623 928
CA 209 213 310 323 408 415 424 510 530 559 562 619 626 650 661 707 714 760 805 818 831 858 909 916 925 949 951
CO 303 719 720 970
CT 203 860
DC 202
DE 302
FL 239 305 321 352 386 407 561 727 754 772 786 813 850 863 904 941 954
GA 229 404 478 678 706 770 912
HI 808
IA 319 515 563 641 712
ID 208
IL 217 224 309 312 618 630 708 773 815 847
IN 219 260 317 574 765 812
KS 316 620 785 913
KY 270 502 606 859
LA 225 318 337 504 985
MA 339 351 413 508 617 774 781 857 978
MD 240 301 410 443
ME 207
MI 231 248 269 313 517 586 616 734 810 906 989
MN 218 320 507 612 651 763 952
MO 314 417 573 636 660 816
MS 228 601 662
MT 406
NC 252 336 704 828 910 919
ND 701
NE 308 402
NH 603
NJ 201 551 609 732 848 856 862 908 973
NM 505 575
NV 702 775
NY 212 315 347 516 518 585 607 631 646 716 718 845 914 917
OH 216 234 330 419 440 513 567 614 740 937
OK 405 580 918
OR 503 541 971
PA 215 267 412 484 570 610 717 724 814
PR 787 939
RI 401
SC 803 843 864
SD 605
TN 423 615 731 865 901 931
TX 210 214 254 281 325 361 409 432 469 512 682 713 806 817 830 832 903 915 936 940 956 972 979
UT 435 801
VA 276 434 540 571 703 757 804
VT 802
WA 206 253 360 425 509
WI 262 414 608 715 920
WV 304
WY 307
"""

STATE_OF_AREA_CODE = {
    int(area_code): state
    for state, *area_codes in map(str.split, _AREA_CODES.split("\n")[1:-1])
    for area_code in area_codes
}


@procedure(everywhere=True)
def initialize(tx, contestants: list[str]) -> int:
    """Sets up the contestants, numbered from 1, and the area codes, once; returns how many contestants there are."""
    if tx.contestants.count() == 0:
        for number, name in enumerate(contestants, start=1):
            tx.contestants.insert(number, name)
        for area_code, state in STATE_OF_AREA_CODE.items():
            tx.area_code_state.insert(area_code, state)
    return tx.contestants.count()


@procedure(partition_by="phone_number")
def vote(tx, phone_number: int, contestant_number: int, max_votes: int) -> int:
    """Counts one vote: 0 accepted, 1 no such contestant, 2 this phone number has voted `max_votes` times."""
    if tx.contestants.get(contestant_number) is None:
        return INVALID_CONTESTANT
    caller = tx.votes_by_phone.get(phone_number)
    num_votes = 0 if caller is None else caller.num_votes
    if num_votes >= max_votes:
        return OVER_THE_LIMIT
    area_code = tx.area_code_state.get(phone_number // 10_000_000)
    state = UNKNOWN_STATE if area_code is None else area_code.state
    tx.votes.insert(phone_number, state, contestant_number)
    tx.votes_by_phone.upsert(phone_number, num_votes + 1)
    tx.callers.upsert(phone_number, state, contestant_number)
    return VOTE_ACCEPTED


@procedure(partition_by="phone_number", read_only=True)
def votes_of(tx, phone_number: int) -> int:
    """How many votes of this phone number were counted."""
    row = tx.votes_by_phone.get(phone_number)
    return 0 if row is None else row.num_votes


@procedure(partition_by=None, read_only=True, everywhere=True)
def count_votes(tx) -> int:
    """How many votes this partition has counted."""
    return tx.votes.count()


@procedure(partition_by=None, read_only=True, everywhere=True)
def results(tx) -> list[tuple[int, str, int]]:
    """(contestant number, name, votes in this partition) of every contestant. Reads every vote."""
    votes = Counter(row.contestant_number for row in tx.votes.scan())
    contestants = sorted(tx.contestants.scan(), key=lambda row: row.contestant_number)
    return [(row.contestant_number, row.contestant_name, votes[row.contestant_number]) for row in contestants]
