"""What the adapter needs of STARK's data: a image with its mask."""


class NestedTensor:
    def __init__(self, tensors, mask):
        self.tensors, self.mask = tensors, mask
