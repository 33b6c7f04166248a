"""In which order the variables of a network are eliminated, and how each of them goes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from halp_iee.solve.network import Relation

Scope = tuple[int, ...]
How = Literal["plain", "relation", "expand", "collapse", "add"]
"""How a variable goes: a minimum over it; replaced by what a relation leaves of it; an image by what it is the image
of; what has an image by the image; two parts of a sum by the sum."""
_EARLY = 64
"""How much dearer a step is counted that joins what would better be added up later."""
MOST_AXES = 48
"""Variables of one table; arrays have at most 64 axes, and an index takes some."""
_ADD_SHARE = 0.25
"""What an entry of a sum costs, for it is added in cache, to one of a table."""


@dataclass(frozen=True)
class Going:
    """How one variable goes.

    Attributes:
        joint: the variables of the table that joins all that touches it (and, for ``add``, its partner).
        left: those of the table that is handed on.
        partner: for ``add``, the other part of the sum; for images, the other of the two; else -1.
        masked: relations, and images as (variable, image), that are laid over the joint table as a mask.
    """

    how: How
    joint: frozenset[int]
    left: frozenset[int]
    relation: Relation | None = None
    partner: int = -1
    masked: tuple[Relation | tuple[int, int], ...] = ()

    def work(self, sizes: Sequence[int]) -> int:
        """Entries of its tables, for variables of these sizes."""
        joint = math.prod(sizes[u] for u in self.joint)
        if self.how == "plain":
            return joint
        return int(joint * (_ADD_SHARE if self.how == "add" else 1.0)) + math.prod(sizes[u] for u in self.left)


class Live:
    """What is left of a network while variables are eliminated one by one."""

    def __init__(
        self,
        scopes: Sequence[Scope],
        relations: Sequence[Relation],
        images: Sequence[tuple[int, int]],
    ) -> None:
        self.slots: dict[int, Scope] = {}
        self._holding: dict[int, set[int]] = {}
        for slot, scope in enumerate(scopes):
            self.put(slot, scope)
        self.relations: dict[int, Relation] = dict(enumerate(relations))
        self._ties: dict[int, list[int]] = {}
        for key, relation in self.relations.items():
            for u in (relation.a, relation.b, relation.total):
                self._ties.setdefault(u, []).append(key)
        self.image_of: dict[int, int] = {image: v for v, image in images}
        self.image: dict[int, int] = dict(images)
        self.adds = bool(images)

    def put(self, slot: int, scope: Scope) -> None:
        """Add a table."""
        self.slots[slot] = scope
        for u in scope:
            self._holding.setdefault(u, set()).add(slot)

    def inside(self, v: int) -> list[int]:
        """The tables that hold ``v``."""
        return sorted(self._holding.get(v, ()))

    def tied(self, v: int) -> list[int]:
        """The relations that hold ``v``."""
        return [key for key in self._ties.get(v, ()) if key in self.relations]

    def going(self, v: int) -> Going:
        """How ``v`` would go now."""
        around = {u for slot in self.inside(v) for u in self.slots[slot]} - {v}
        ties = [self.relations[key] for key in self.tied(v)]
        source, image = self.image_of.get(v, -1), self.image.get(v, -1)
        if source >= 0 and source not in around:
            return Going("expand", frozenset(around | {v}), frozenset(around | {source}), partner=source)
        if image >= 0 and image not in around and not ties:
            return Going("collapse", frozenset(around | {v}), frozenset(around | {image}), partner=image)
        if self.adds and len(ties) == 1 and source < 0 and image < 0:
            sum_of_two = self._sum(v, ties[0], around)
            if sum_of_two is not None:
                return sum_of_two
        masked: list[Relation | tuple[int, int]] = list(ties[1:])
        if source >= 0:
            masked.append((source, v))
        if image >= 0:
            masked.append((v, image))
        for mask in masked:
            around |= {mask.a, mask.b, mask.total} if isinstance(mask, Relation) else set(mask)
        around -= {v}
        joint = frozenset(around | {v})
        if not ties:
            return Going("plain", joint, frozenset(around), masked=tuple(masked))
        left = frozenset(around | {ties[0].a, ties[0].b, ties[0].total}) - {v}
        return Going("relation", joint, left, ties[0], masked=tuple(masked))

    def _sum(self, v: int, relation: Relation, around: set[int]) -> Going | None:
        """``v`` and the other part at once, where nothing else holds the two of them together."""
        if v == relation.total:
            return None
        other = relation.b if v == relation.a else relation.a
        beside = {u for slot in self.inside(other) for u in self.slots[slot]} - {other}
        alone = len(self.tied(other)) == 1 and other not in self.image and other not in self.image_of
        if other == v or not alone or other in around or relation.total in around | beside:
            return None
        context = around | beside
        return Going("add", frozenset(context | {v, other}), frozenset(context | {relation.total}), relation, other)

    def early(self, v: int, going: Going) -> bool:
        """Whether this joins what goes apart later: two parts of a sum that can be added up once their own tables
        are, or a sum's image to its parts."""
        relation = going.relation
        if not self.adds or going.how != "relation" or relation is None:
            return False
        if v in self.image:
            return True
        parts = {relation.a, relation.b}
        if v != relation.total or parts & self.image.keys():
            return False
        return not self._holding.get(relation.a, set()) & self._holding.get(relation.b, set())

    def remove(self, v: int, going: Going) -> None:
        """Take ``v`` (and for a sum its partner) away, with all tables and relations that hold it."""
        gone = [v, going.partner] if going.how == "add" else [v]
        for u in gone:
            for slot in self.inside(u):
                for w in self.slots.pop(slot):
                    self._holding[w].discard(slot)
            for key in self.tied(u):
                del self.relations[key]
            if u in self.image_of:
                self.image.pop(self.image_of.pop(u), None)
            if u in self.image:
                self.image_of.pop(self.image.pop(u), None)


@dataclass(frozen=True)
class Order:
    """Which variable to eliminate when.

    Attributes:
        variables: in order of elimination; partners of a sum are not named.
        goings: how each of them goes.
    """

    variables: tuple[int, ...]
    goings: tuple[Going, ...]

    def work(self, sizes: Sequence[int]) -> int:
        """Entries of all tables of one pass, for variables of these sizes."""
        return sum(going.work(sizes) for going in self.goings)


def elimination_order(
    sizes: Sequence[int],
    scopes: Sequence[Scope],
    relations: Sequence[Relation],
    images: Sequence[tuple[int, int]] = (),
) -> Order:
    """Greedy: the variable whose tables are smallest goes next; ties by index.

    One value left counts as two, so that tables do not come to have more axes than arrays can.
    """
    live = Live(scopes, relations, images)
    counted = [max(2, size) for size in sizes]
    weights: dict[int, int] = {}
    goings: dict[int, Going] = {}
    remaining = set(range(len(sizes)))
    stale = set(remaining)
    order, taken = [], []
    while remaining:
        for v in stale & remaining:
            goings[v] = live.going(v)
            weights[v] = goings[v].work(counted) * (_EARLY if live.early(v, goings[v]) else 1)
        v = min(remaining, key=lambda u: (weights[u], u))
        going = goings[v]
        order.append(v)
        taken.append(going)
        gone = {v, going.partner} if going.how == "add" else {v}
        # What shares a table with what is left may go in another way now, and so may the parts of its sums.
        stale = set(going.left) | set(going.joint) | ({going.partner} - {-1})
        live.remove(v, going)
        live.put(len(scopes) + v, tuple(sorted(going.left)))
        if live.adds:
            stale |= {u for w in stale for slot in live.inside(w) for u in live.slots[slot]}
            ties = [live.relations[key] for w in stale for key in live.tied(w)]
            stale |= {u for r in ties for u in (r.a, r.b, r.total)}
        remaining -= gone
    return Order(tuple(order), tuple(taken))
