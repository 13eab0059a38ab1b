"""The catalog: one row per model, by family. A vector is what the model's paper or card says to use for retrieval."""

from typing import Any

from pgimgsearch.models.spec import ModelSpec, Preprocess

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# For checkpoints that do not say how their images are prepared; "--preprocess NAME" takes the names.
PREPROCESS = {
    "imagenet": Preprocess((224, 224), "shortest", 256, "bicubic", IMAGENET_MEAN, IMAGENET_STD),
    "clip": Preprocess((224, 224), "shortest", 224, "bicubic", CLIP_MEAN, CLIP_STD),
    "siglip": Preprocess((224, 224), "squash", 224, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    # the batched one of the two that SSCD's authors give (skew_320)
    "sscd": Preprocess((320, 320), "squash", 320, "bilinear", IMAGENET_MEAN, IMAGENET_STD),
}


def _or(given: dict[str, Any], **otherwise: Any) -> Any:
    """Fields of a row, with what holds unless they say otherwise."""
    return otherwise | given


def _dinov3(name: str, tag: str, dim: int, parameters: float, good_for: str, **other: Any) -> ModelSpec:
    convnext = tag.startswith("convnext")
    return ModelSpec(
        name, "timm", tag, output="pool" if convnext else "cls", dim=dim, size=224 if convnext else 256,
        parameters=parameters, licence="DINOv3 License", good_for=good_for, proof="architecture",
        **_or(other, batch_size=16 if parameters > 250 else 32),
    )  # fmt: skip


def _dinov3_hf(name: str, tag: str, dim: int, parameters: float, alternative: str) -> ModelSpec:
    return ModelSpec(
        name, "transformers", f"facebook/dinov3-{tag}", output="cls", dim=dim, also={"mean": dim}, size=224,
        parameters=parameters, licence="DINOv3 License", gated=True, alternative=alternative, proof="architecture",
        batch_size=16 if parameters > 250 else 32, good_for="the same weights with Meta's own preprocessing",
    )  # fmt: skip


def _dinov2(name: str, repository: str, dim: int, parameters: float, good_for: str) -> ModelSpec:
    return ModelSpec(
        name, "transformers", f"facebook/{repository}", output="cls", dim=dim, also={"mean": dim}, size=224,
        parameters=parameters, licence="Apache-2.0", proof="architecture", good_for=good_for,
        batch_size=16 if parameters > 250 else 32,
    )  # fmt: skip


def _clip(name: str, repository: str, dim: int, hidden: int, parameters: float, good_for: str) -> ModelSpec:
    return ModelSpec(
        name, "transformers", repository, output="projection", dim=dim, also={"hidden": hidden}, size=224, text=True,
        parameters=parameters, licence="MIT", near=0.96, proof="architecture", good_for=good_for,
        batch_size=64 if parameters < 200 else 16,
    )  # fmt: skip


def _open_clip(name: str, checkpoint: str, dim: int, parameters: float, good_for: str, **other: Any) -> ModelSpec:
    return ModelSpec(
        name, "open_clip", checkpoint, output="projection", dim=dim, size=224, text=True, parameters=parameters,
        licence="MIT", near=0.96, proof="architecture", good_for=good_for,
        **_or(other, batch_size=64 if parameters < 300 else 16),
    )  # fmt: skip


def _siglip(name: str, repository: str, dim: int, size: int, parameters: float, good_for: str) -> ModelSpec:
    return ModelSpec(
        name, "transformers", repository, output="projection", dim=dim, size=size, text=True, parameters=parameters,
        licence="Apache-2.0", proof="architecture", good_for=good_for, batch_size=32 if size < 300 else 8,
    )  # fmt: skip


def _timm(name: str, tag: str, dim: int, size: int, parameters: float, good_for: str, **other: Any) -> ModelSpec:
    return ModelSpec(
        name, "timm", tag, output="cls" if tag.startswith("vit") else "pool", dim=dim, size=size,
        parameters=parameters, good_for=good_for,
        **_or(other, licence="Apache-2.0", proof="architecture", batch_size=32),
    )  # fmt: skip


SELF_SUPERVISED = (
    _dinov3("dinov3", "vit_large_patch16_dinov3.lvd1689m", 1024, 300,
            "similar images, instances, fine detail; the strongest here for its cost"),
    _dinov3("dinov3-vits16", "vit_small_patch16_dinov3.lvd1689m", 384, 21, "dinov3 at a fourteenth of its size"),
    _dinov3("dinov3-vits16plus", "vit_small_plus_patch16_dinov3.lvd1689m", 384, 29, "a better small dinov3"),
    _dinov3("dinov3-vitb16", "vit_base_patch16_dinov3.lvd1689m", 768, 86, "dinov3 at a third of its size"),
    _dinov3("dinov3-vith16plus", "vit_huge_plus_patch16_dinov3.lvd1689m", 1280, 840, "better than dinov3, on a GPU"),
    _dinov3("dinov3-vit7b16", "vit_7b_patch16_dinov3.lvd1689m", 4096, 6716, "the teacher of all of them; a large GPU",
            batch_size=4),
    _dinov3("dinov3-vitl16-sat493m", "vit_large_patch16_dinov3.sat493m", 1024, 300, "satellite and aerial images"),
    _dinov3("dinov3-convnext-tiny", "convnext_tiny.dinov3_lvd1689m", 768, 29, "dinov3 distilled, fast on CPUs"),
    _dinov3("dinov3-convnext-small", "convnext_small.dinov3_lvd1689m", 768, 50, "the same, a size up"),
    _dinov3("dinov3-convnext-base", "convnext_base.dinov3_lvd1689m", 1024, 89, "the same, two sizes up"),
    _dinov3("dinov3-convnext-large", "convnext_large.dinov3_lvd1689m", 1536, 198, "the largest convolutional dinov3"),
    _dinov3_hf("dinov3-hf", "vitl16-pretrain-lvd1689m", 1024, 300, "dinov3"),
    _dinov3_hf("dinov3-vits16-hf", "vits16-pretrain-lvd1689m", 384, 21, "dinov3-vits16"),
    _dinov3_hf("dinov3-vitb16-hf", "vitb16-pretrain-lvd1689m", 768, 86, "dinov3-vitb16"),
    _dinov2("dinov2-small", "dinov2-small", 384, 22, "similar images on a CPU"),
    _dinov2("dinov2-base", "dinov2-base", 768, 86, "similar images and instances at a third of dinov3's cost"),
    _dinov2("dinov2-large", "dinov2-large", 1024, 300, "similar images and instances"),
    _dinov2("dinov2-giant", "dinov2-giant", 1536, 1100, "the largest dinov2, on a GPU"),
    _dinov2("dinov2-small-reg", "dinov2-with-registers-small", 384, 22, "dinov2-small with cleaner features"),
    _dinov2("dinov2-base-reg", "dinov2-with-registers-base", 768, 86, "dinov2-base with cleaner features"),
    _dinov2("dinov2-large-reg", "dinov2-with-registers-large", 1024, 300, "dinov2-large with cleaner features"),
    _dinov2("dinov2-giant-reg", "dinov2-with-registers-giant", 1536, 1100, "dinov2-giant with cleaner features"),
    ModelSpec("dinov2-vits14-onnx", "onnx", "RoundtTble/dinov2_vits14_onnx", output="cls", dim=384, size=224,
              parameters=22, preprocess=PREPROCESS["imagenet"], licence="Apache-2.0", proof="architecture",
              good_for="dinov2-small on ONNX Runtime, without torch"),
)  # fmt: skip

TEXT_AND_IMAGE = (
    _clip("clip-vit-b-32", "openai/clip-vit-base-patch32", 512, 768, 151, "text to image, fast"),
    _clip("clip-vit-b-16", "openai/clip-vit-base-patch16", 512, 768, 150, "text to image, finer than clip-vit-b-32"),
    _clip("clip-vit-l-14", "openai/clip-vit-large-patch14", 768, 1024, 428, "text to image, the largest OpenAI CLIP"),
    _open_clip("openclip-vit-b-32-laion2b", "ViT-B-32/laion2b_s34b_b79k", 512, 151,
               "text to image, fast, better than clip-vit-b-32"),
    _open_clip("openclip-vit-b-16-datacomp", "ViT-B-16/datacomp_xl_s13b_b90k", 512, 150, "text to image"),
    _open_clip("openclip-vit-l-14-datacomp", "ViT-L-14/datacomp_xl_s13b_b90k", 768, 428, "text to image, strong"),
    _open_clip("openclip-vit-h-14-laion2b", "ViT-H-14/laion2b_s32b_b79k", 1024, 986, "text to image, on a GPU"),
    _open_clip("openclip-xlm-roberta-b-32", "xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k", 512, 366,
               "text to image in a hundred languages", batch_size=64),
    _siglip("siglip-b-16-224", "google/siglip-base-patch16-224", 768, 224, 203, "text to image"),
    _siglip("siglip2-b-16-224", "google/siglip2-base-patch16-224", 768, 224, 375, "text to image in many languages"),
    _siglip("siglip2-b-16-256", "google/siglip2-base-patch16-256", 768, 256, 375, "the same at 256 pixels"),
    _siglip("siglip2-b-16-384", "google/siglip2-base-patch16-384", 768, 384, 376, "the same at 384: small objects"),
    _siglip("siglip2-b-16-512", "google/siglip2-base-patch16-512", 768, 512, 376, "the same at 512: text in images"),
    _siglip("siglip2-l-16-256", "google/siglip2-large-patch16-256", 1024, 256, 882, "text to image, many languages"),
    _siglip("siglip2-so400m-14-384", "google/siglip2-so400m-patch14-384", 1152, 384, 1136,
            "text to image in many languages, the strongest here"),
    ModelSpec("imagebind-huge", "imagebind", "https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth",
              output="projection", dim=1024, size=224, parameters=986, preprocess=PREPROCESS["clip"], text=True,
              licence="CC-BY-NC 4.0 (no commercial use)", batch_size=8, near=0.96, proof="architecture",
              good_for="text to image in the space that ImageBind shares with sound and depth"),
)  # fmt: skip

SUPERVISED = (
    _timm("mobilenetv2", "mobilenetv2_100.ra_in1k", 1280, 224, 3.5, "the lightest network here; any CPU",
          proof="exact", batch_size=64),
    _timm("resnet50", "resnet50.tv_in1k", 2048, 224, 25.6, "a light, well-known baseline", licence="BSD-3-Clause",
          batch_size=64),
    _timm("efficientnet-b4", "efficientnet_b4.ra2_in1k", 1792, 320, 19.3, "a light, finer baseline"),
    _timm("efficientnet-b7", "tf_efficientnet_b7.ns_jft_in1k", 2560, 600, 66.3, "fine detail at 600 pixels; slow",
          batch_size=8),
    _timm("vit-s-16", "vit_small_patch16_224.augreg_in21k_ft_in1k", 384, 224, 22.1, "classes, small"),
    _timm("vit-b-16", "vit_base_patch16_224.augreg2_in21k_ft_in1k", 768, 224, 86.6, "classes"),
    _timm("vit-l-16", "vit_large_patch16_224.augreg_in21k_ft_in1k", 1024, 224, 304.3, "classes, large", batch_size=16),
)  # fmt: skip

COPIES_AND_COLOURS = (
    ModelSpec(
        "sscd-disc-mixup", "sscd",
        "https://dl.fbaipublicfiles.com/sscd-copy-detection/sscd_disc_mixup.torchvision.pt", output="descriptor",
        dim=512, size=320, parameters=24.6, preprocess=PREPROCESS["sscd"], licence="MIT", near=0.75,
        proof="architecture", good_for="copies: edited, cropped, overlaid; precision 0.9 at 0.75 on DISC21",
    ),
    ModelSpec(
        "pdq", "pdq", "pdqhash", output="hash", dim=256, storage="bit", licence="BSD-3-Clause", batch_size=32,
        near=1 - 31 / 256, proof="exact", good_for="copies: the same image resized or re-encoded; no weights",
    ),
    ModelSpec(
        "palette", "palette", "cielab-1", output="histogram", dim=32, text=True, licence="Apache-2.0", batch_size=32,
        near=0.99, proof="exact", good_for="colours, by image and by name (\"navy and gold\"); no weights",
    ),
)  # fmt: skip

CATALOG: tuple[ModelSpec, ...] = (*SELF_SUPERVISED, *TEXT_AND_IMAGE, *SUPERVISED, *COPIES_AND_COLOURS)
SYNONYMS = {"dinov3-vitl16": "dinov3"}
