"""Networks. What command lines need to know of them without importing TensorFlow: their names."""

NETWORKS = {  # of model.py: the function that creates it, and the layers whose maps with_features() takes
    "cnn": ("create_cnn", ("conv1_pool", "conv2_pool", "conv3_pool")),
    "resnet": ("create_resnet", ("stem_relu", "stage1_block2_relu", "stage2_block2_relu")),
}

PRETRAINED_NETWORKS = {  # name: module and class in keras.applications
    **{f"convnext_{n.lower()}": f"convnext.ConvNeXt{n}" for n in ("Tiny", "Small", "Base", "Large", "XLarge")},
    **{f"densenet{n}": f"densenet.DenseNet{n}" for n in (121, 169, 201)},
    **{f"efficientnet_b{n}": f"efficientnet.EfficientNetB{n}" for n in range(8)},
    **{f"efficientnet_v2_b{n}": f"efficientnet_v2.EfficientNetV2B{n}" for n in range(4)},
    **{f"efficientnet_v2_{n.lower()}": f"efficientnet_v2.EfficientNetV2{n}" for n in "SML"},
    "inception_resnet_v2": "inception_resnet_v2.InceptionResNetV2",
    "inception_v3": "inception_v3.InceptionV3",
    "mobilenet": "mobilenet.MobileNet",
    "mobilenet_v2": "mobilenet_v2.MobileNetV2",
    "mobilenet_v3_small": "mobilenet_v3.MobileNetV3Small",
    "mobilenet_v3_large": "mobilenet_v3.MobileNetV3Large",
    "nasnet_mobile": "nasnet.NASNetMobile",
    "nasnet_large": "nasnet.NASNetLarge",
    **{f"resnet{n}": f"resnet.ResNet{n}" for n in (50, 101, 152)},
    **{f"resnet{n}_v2": f"resnet_v2.ResNet{n}V2" for n in (50, 101, 152)},
    "vgg16": "vgg16.VGG16",
    "vgg19": "vgg19.VGG19",
    "xception": "xception.Xception",
}
