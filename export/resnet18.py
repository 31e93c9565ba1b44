"""torchvision's ResNet-18. Try: marsmith export resnet18 --weights resnet18.pth (or hub, or random)."""

from torchvision.models import ResNet18_Weights, resnet18

from marsmith.export import ImagePreprocessing, Recipe, imagenet_labels

RECIPE = Recipe(
    build=resnet18,
    hub_weights=lambda: ResNet18_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True),
    preprocessing=ImagePreprocessing(),
    labels=imagenet_labels,
)
