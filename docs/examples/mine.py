"""A network of your own: a ResNet-18 with two classes, and its labels."""

from torchvision.models import resnet18

from marsmith.export import ImagePreprocessing, Recipe

RECIPE = Recipe(
    build=lambda: resnet18(num_classes=2),
    preprocessing=ImagePreprocessing(resize=256, crop=(224, 224)),
    labels=lambda: ["cat", "dog"],
)
