"""What the shared tests have to know of segmentation_loss."""

from mpamatch import ops
from tests.ops import truth
from tests.ops.form import C, Form, Kernel

FORMS = [
    Form(
        "segmentation_loss",
        ops.segmentation_loss,
        ("logits", "label", "weight"),
        truth.segmentation_loss,
        lambda logits, label, weight, grad: (truth.segmentation_loss_gradient(logits, label, grad, weight=weight),),
        of_maps=True,
    )
]
KERNELS = {
    "segmentation_loss": Kernel(lambda x: (x.logits, x.map_label, x.map_weight)),
    "segmentation_loss_backward": Kernel(lambda x: (x.one, x.randn(3, C), x.logits, x.map_label, x.map_weight)),
}
