"""THOR for a convolution, a dense layer and a classifier, in loops written from the equations; float64."""

import numpy as np

BLOCK = 128


def patch(image, row, column, area, stride, dilation, before):
    """What an output position sees of ``image`` [H, W, C], zeros outside: [kh * kw * C]."""
    values = []
    for i in range(area[0]):
        for j in range(area[1]):
            y = row * stride + i * dilation - before[0]
            x = column * stride + j * dilation - before[1]
            inside = 0 <= y < image.shape[0] and 0 <= x < image.shape[1]
            values.append(image[y, x] if inside else np.zeros(image.shape[2]))
    return np.concatenate(values)


def patches(images, area, stride=1, dilation=1, padding="same"):
    """[n, H, W, C] -> [n, H', W', kh * kw * C]."""
    sizes, before = [], []
    for size, side in zip(images.shape[1:3], area, strict=True):
        extent = (side - 1) * dilation + 1
        if padding == "valid":
            sizes.append((size - extent) // stride + 1)
            before.append(0)
        else:
            sizes.append(-(-size // stride))
            before.append(max((sizes[-1] - 1) * stride + extent - size, 0) // 2)
    return np.array(
        [
            [[patch(image, y, x, area, stride, dilation, before) for x in range(sizes[1])] for y in range(sizes[0])]
            for image in images
        ]
    )


def factor(rows):
    """mean of r r^T over rows [m, d], with zeros outside of the blocks."""
    size = rows.shape[1]
    result = np.zeros((size, size))
    for row in rows:
        result += np.outer(row, row)
    result /= len(rows)
    if size > BLOCK:
        for i in range(size):
            for j in range(size):
                if i // BLOCK != j // BLOCK:
                    result[i, j] = 0.0
    return result


def inverse(matrix, damping):
    return np.linalg.inv(matrix + damping * np.eye(len(matrix)))


def update(gradient, inputs, output_gradients, positions, damping):
    """The preconditioned gradient of a kernel [d_in, d_out].

    Args:
      inputs: rows a [m, d_in]; output_gradients: rows ds [m, d_out], of each picture's own loss.
    """
    root = np.sqrt(damping / positions)
    of_inputs, of_outputs = inverse(factor(inputs), root), inverse(factor(output_gradients), root)
    return of_inputs @ gradient @ of_outputs / positions


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def small_network(images, labels, kernel, dense, weights, bias):
    """Convolution 3 x 3 stride 2, ReLU, mean over the map, dense layer, classifier: its loss and all that THOR needs.

    Args:
      kernel: [3, 3, C, F]; dense: [F, D]; weights: [C, D]; bias: [C].

    Returns:
      loss, and layer -> (inputs [m, d_in], gradients of its outputs [m, d_out] of the sum of the losses, positions).
    """
    seen = patches(images, (3, 3), stride=2)
    count, height, width, _ = seen.shape
    seen = seen.reshape(count, height * width, -1)
    maps = seen @ kernel.reshape(-1, kernel.shape[-1])
    pooled = np.maximum(maps, 0).mean(axis=1)
    embeddings = pooled @ dense
    probabilities = softmax(embeddings @ weights.T + bias)
    loss = -np.log(probabilities[np.arange(count), labels]).mean()
    of_logits = probabilities - np.eye(len(weights))[labels]
    of_embeddings = of_logits @ weights
    of_pooled = of_embeddings @ dense.T
    of_maps = (maps > 0) * of_pooled[:, None] / (height * width)
    return loss, {
        "conv": (seen.reshape(-1, seen.shape[-1]), of_maps.reshape(-1, of_maps.shape[-1]), height * width),
        "dense": (pooled, of_embeddings, 1),
        "head": (embeddings, of_logits, 1),
    }
