"""What the adapter needs of STARK's data: a picture with its mask."""


class NestedTensor:
    def __init__(self, tensors, mask):
        self.tensors, self.mask = tensors, mask
