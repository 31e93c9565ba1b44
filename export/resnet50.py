"""torchvision's ResNet-50. Try: marsmith export resnet50 --weights resnet50.pth (or hub, or random)."""

from torchvision.models import ResNet50_Weights, resnet50

from marsmith.export import ImagePreprocessing, Recipe, imagenet_labels

RECIPE = Recipe(
    build=resnet50,
    # The second set of weights is the better one, and was measured with a shorter side of 232.
    hub_weights=lambda: ResNet50_Weights.IMAGENET1K_V2.get_state_dict(progress=True, check_hash=True),
    preprocessing=ImagePreprocessing(resize=232),
    labels=imagenet_labels,
)
