"""torchvision's MobileNetV3-Large. Try: marsmith export mobilenet_v3_large --weights mobilenet_v3_large.pth."""

from torchvision.models import MobileNet_V3_Large_Weights, mobilenet_v3_large

from marsmith.export import ImagePreprocessing, Recipe, imagenet_labels

RECIPE = Recipe(
    build=mobilenet_v3_large,
    # The second set of weights is the better one, and was measured with a shorter side of 232.
    hub_weights=lambda: MobileNet_V3_Large_Weights.IMAGENET1K_V2.get_state_dict(progress=True, check_hash=True),
    preprocessing=ImagePreprocessing(resize=232),
    labels=imagenet_labels,
)
