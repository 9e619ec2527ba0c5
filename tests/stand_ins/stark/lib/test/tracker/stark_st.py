"""The call order of STARK-ST's tester: a dynamic template comes behind the search image, at times."""

from copy import deepcopy

from lib.test.tracker.stark_s import STARK_S


class STARK_ST(STARK_S):
    update_interval = 2
    num_extra_template = 1

    def initialize(self, image, info):
        first = self.run(image["template"])
        self.parts = [first, deepcopy(first)]
        self.frame_id = 0

    def track(self, image, info=None):
        self.frame_id += 1
        box = self.decide([*self.parts, self.run(image["search"])])
        if self.frame_id % self.update_interval == 0:
            self.parts[1] = self.run(image["template"])
        return box


def get_tracker_class():
    return STARK_ST
