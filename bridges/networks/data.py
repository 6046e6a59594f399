"""Files of the real networks and data sets, found in a folder or downloaded from their sources.

None of them is part of this package. `FILES` has the source of each, as its authors published it,
with the digest of what is downloaded.
"""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from cpwl.files import atomic_path

FOLDER = "CPWL_DATA"
"""Environment variable with the folder that holds the files, by the names of `FILES`."""


class Source(NamedTuple):
    """Where a file comes from.

    Attributes
    ----------
    url : str
        Always the same bytes: at a commit, or of a release that cannot change.
    sha256 : str
        Of what is downloaded.
    member : str
        Which file of the downloaded zip archive it is; empty where the download is the file.
    """

    url: str
    sha256: str
    member: str = ""


def path(name: str, folder: Path | None = None) -> Path:
    """Return where a known file is; download it first if no folder is named.

    Parameters
    ----------
    name : str
        One of `FILES`, for example "weights/mnist_vae.pth".
    folder : Path, optional
        The folder that has it. By default the one named by the environment variable CPWL_DATA, and
        without that the user's cache, where the file stays after one download of at most 26 MB.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        A name that is not in `FILES`, or a download whose SHA-256 is not the known one; it is not
        kept.
    FileNotFoundError
        A folder is given, or named by CPWL_DATA, and the file is not in it.
    ImportError
        pooch, which downloads, is not installed.
    OSError
        The source could not be reached.

    Examples
    --------
    >>> from pathlib import Path
    >>> from bridges.networks import data
    >>> len(data.FILES)
    31
    >>> data.path("weights/mnist_vae.pth", Path("no", "such", "folder"))
    Traceback (most recent call last):
    FileNotFoundError: Expected the file weights/mnist_vae.pth in no/such/folder, got none. ...
    """
    if name not in FILES:
        raise ValueError(
            f"Expected one of the files {', '.join(FILES)}, got '{name}'. Choose one of them."
        )
    named = os.environ.get(FOLDER)
    if folder is None and not named:
        return _download(name, FILES[name])
    folder = Path(named or "") if folder is None else Path(folder)
    if not (folder / name).is_file():
        raise FileNotFoundError(
            f"Expected the file {name} in {folder}, got none. Its source is {FILES[name].url}; "
            f"without a folder, and without {FOLDER} in the environment, it is downloaded."
        )
    return folder / name


def _download(name: str, source: Source) -> Path:
    """Download a file into the user's cache, or find it there."""
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            f"Expected pooch, which downloads {name}, got none. Install the extra cpwl[data], or "
            f"set {FOLDER} to a folder that has the file."
        ) from error
    where = Path(pooch.os_cache("cpwl")) / name
    try:
        found = pooch.retrieve(
            source.url,
            known_hash=f"sha256:{source.sha256}",
            fname=f"{where.name}.zip" if source.member else where.name,
            path=where.parent,
            processor=_unpacking(source.member, where) if source.member else None,
            progressbar=sys.stderr.isatty(),
        )
    except ValueError as error:
        raise ValueError(
            f"{error} Try again, or set {FOLDER} to a folder that has {name}."
        ) from error
    except OSError as error:
        raise OSError(
            f"Expected to download {name} from {source.url}, got {type(error).__name__}. Connect "
            f"to the network, or set {FOLDER} to a folder that has the file."
        ) from error
    return Path(found)


def _unpacking(member: str, where: Path) -> Callable[[str, str, object], str]:
    """Return what pooch calls with an archive's path, and whether that is new ("fetch": no)."""

    def unpack(archive: str, action: str, _: object) -> str:
        if action != "fetch" or not where.is_file():
            with zipfile.ZipFile(archive) as files, atomic_path(where) as part:
                part.write_bytes(files.read(member))
        return str(where)

    return unpack


def _at(repository: str, commit: str, files: Mapping[str, tuple[str, str]]) -> dict[str, Source]:
    """Return the sources of files of a repository, each given by its path there and its digest."""
    base = f"https://raw.githubusercontent.com/{repository}/{commit}"
    return {name: Source(f"{base}/{there}", sha256) for name, (there, sha256) in files.items()}


FILES: Mapping[str, Source] = MappingProxyType(
    # the Datasaurus Dozen, 13 sets of points (MIT)
    _at(
        "jumpingrivers/datasauRus",
        "0496ac15208e9ee4a58ea81a5de46912f095aa15",
        {
            "datasaurus_dozen.tsv": (
                "inst/extdata/DatasaurusDozen-Long.tsv",
                "c8c4792c3ed15238ba07dad6ab778adc79d72e3e1324ead4d8c1ae52849780f8",
            ),
        },
    )
    # MNIST by LeCun, Cortes and Burges (CC BY-SA 3.0), at the mirror of CVDF: their own page no
    # longer serves it
    | {
        f"mnist/{name}.gz": Source(
            f"https://storage.googleapis.com/cvdf-datasets/mnist/{name}.gz", sha256
        )
        for name, sha256 in {
            "t10k-images-idx3-ubyte": (
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
            ),
            "t10k-labels-idx1-ubyte": (
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
            ),
            "train-images-idx3-ubyte": (
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
            ),
            "train-labels-idx1-ubyte": (
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
            ),
        }.items()
    }
    # letters A to J in MNIST's format
    | _at(
        "davidflanagan/notMNIST-to-MNIST",
        "17823f4d4a3acd8317c07866702d2eb2ac79c7a0",
        {
            "notmnist/t10k-images-idx3-ubyte.gz": (
                "t10k-images-idx3-ubyte.gz",
                "70ae9e06201f2827e5b0a3781a3169d735dd2efc69996b9eeaee7f10ed4044d7",
            ),
            "notmnist/t10k-labels-idx1-ubyte.gz": (
                "t10k-labels-idx1-ubyte.gz",
                "1fa03836e01c862542f8eb83463bb951bebec6fcb3efa28dad748c6b38a9021b",
            ),
        },
    )
    # pictures of clothes in MNIST's format, by Zalando Research (MIT)
    | _at(
        "zalandoresearch/fashion-mnist",
        "b2617bb6d3ffa2e429640350f613e3291e10b141",
        {
            f"fashion-mnist/{name}.gz": (f"data/fashion/{name}.gz", sha256)
            for name, sha256 in {
                "t10k-images-idx3-ubyte": (
                    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
                ),
                "t10k-labels-idx1-ubyte": (
                    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
                ),
                "train-images-idx3-ubyte": (
                    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
                ),
                "train-labels-idx1-ubyte": (
                    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
                ),
            }.items()
        },
    )
    # a GAN, a VAE and a classifier of MNIST (MIT)
    | _at(
        "csinva/gan-vae-pretrained-pytorch",
        "9b6401e122fa186a3a57f97c5df57e3603121fba",
        {
            "weights/mnist_gan_mlp.ckpt": (
                "mnist_gan_mlp/weights/G--300.ckpt",
                "3163c6503c144d35fe44bb0247bbc61cd8e49c50ea3d84c1b7c080dc18fbf84c",
            ),
            "weights/mnist_lenet5.pth": (
                "mnist_classifier/weights/lenet_epoch%3D12_test_acc%3D0.991.pth",
                "7b3591ba5a63752a7e728d7f7e511266556a2ec66844810da9f475e07019b85e",
            ),
            "weights/mnist_vae.pth": (
                "mnist_vae/weights/vae_epoch_25.pth",
                "233916a8095759cf732f4dc19c381bc8de03d97040e68f4252a257a5502a9c70",
            ),
        },
    )
    # diffusion models of MNIST and EMNIST (MIT)
    | _at(
        "sofia-dominguezc/MNIST-diffusion",
        "816ec6a13a6f2b2d786cd58c9a65ef7c66fa8ce1",
        {
            "mnist_diffusion/vae.pth": (
                "parameters/MNIST/VarAutoEncoder.pth",
                "348b5f24714d656baabe93c7b82358acbbb9f1b176ba1280a2cff02f20ca6def",
            ),
            "mnist_diffusion/latent_denoiser.pth": (
                "parameters/MNIST/Diffusion.pth",
                "684dfdf8d7010436d4a030e324bf66a05ee490c171289776f223066ff271e69b",
            ),
            "emnist_diffusion/autoencoder.pth": (
                "parameters/EMNIST/AutoEncoder.pth",
                "3006912c325fa1712c5ded81ac82d32d08e45e3470ec26a6ef2db83c2f14a372",
            ),
            "emnist_diffusion/latent_denoiser.pth": (
                "parameters/EMNIST/Diffusion.pth",
                "0b3722217dd0545d416be876c303dca3bd08daace39e2fa8142408ee9c50731b",
            ),
        },
    )
    | _at(
        "sofia-dominguezc/MNIST-diffusion",
        "88bc05803c987e40be4eacb48cf4bb14d7c58c5e",
        {
            "mnist_diffusion/transformer.pth": (
                "parameters/MNIST/DiffusionViT.pth",
                "2fd387f3a0c7bbd74cb209e4a7db43f18418a974e63b3d4b493fa2ab2f34f90c",
            ),
        },
    )
    # a DCGAN of faces (MIT): the wheel carries its weights
    | {
        "weights/dcgan_faces.pth": Source(
            "https://files.pythonhosted.org/packages/95/04/bb51d207d2c5d34ea80ba7c0e4734b87"
            "9466810700a9e81fa540d13e4eb2/gan_face_generate-1.1.1-py3-none-any.whl",
            "24102f4be41d164e44251168ede0458a45e498a888c81493e2aea48529640569",
            member="gan_face_generate/weights.tar",
        )
    }
    # a bias-free denoiser of grey photographs, a noisy patch, and the Jacobian there (MIT)
    | _at(
        "LabForComputationalVision/bias_free_denoising",
        "64930f028aec88b0ebc1fc13f79932f5b7aa744d",
        {
            "denoiser/bf_dncnn_0-100.pt": (
                "pretrained/dncnn/bias_free/0-100.pt",
                "a21e6541a39f3975f421142f5d3845bc858e89881118be647ad9208cb61126e5",
            ),
            "denoiser/noisy_im_30.npy": (
                "precomputed/dncnn/bias_free/noisy_im_30.npy",
                "bc8ff59cdeea477bdb304ed7be9a9ef6136a1c5c931fc9a3655cfc6fe9539c60",
            ),
            "denoiser/Jacobian_30.npy": (
                "precomputed/dncnn/bias_free/Jacobian_30.npy",
                "5a6095beb3b681219b48eb0803ca5e75e942e5f2a45d152da2c1165ba2a011fa",
            ),
        },
    )
    # a preview decoder of Stable Diffusion latents (its repository: AGPL-3.0)
    | _at(
        "AUTOMATIC1111/stable-diffusion-webui",
        "56e557c6ff8a6480887c9c585bf908045ee8e791",
        {
            "weights/vae_approx_sd15.pt": (
                "models/VAE-approx/model.pt",
                "4f88c9078bb2238cdd0d8864671dd33e3f42e091e41f08903f3c15e4a54a9b39",
            ),
        },
    )
    # TAEF2, a tiny autoencoder of an image-diffusion latent space (MIT)
    | _at(
        "madebyollin/taesd",
        "5cccb12dc72074a4be35680c3b108548a7c69978",
        {
            "weights/taef2_encoder.pth": (
                "taef2_encoder.pth",
                "10a4e1021e89d7551eaf161352da8dbd0b1aa83872ae28b150c1df1ce2f147b6",
            ),
            "weights/taef2_decoder.pth": (
                "taef2_decoder.pth",
                "0a44a31e1ae59eb9dbf9359d24942fd3ef5928162c1800d97a28c61d51be0ab5",
            ),
        },
    )
    # networks of the verification competition VNN-COMP 2021
    | _at(
        "stanleybak/vnncomp2021",
        "90419aadcf06cf543ce5c1706cae1059dc9fa6cf",
        {
            "onnx/acasxu_1_1.onnx": (
                "benchmarks/acasxu/ACASXU_run2a_1_1_batch_2000.onnx",
                "843f7110bf5a8b7f0eeb9b1c548d9d558db9099328b392423d5a7444a0656dd4",
            ),
            "onnx/acasxu_2_7.onnx": (
                "benchmarks/acasxu/ACASXU_run2a_2_7_batch_2000.onnx",
                "4573961576bae0c320b090df5d7a0c13a5efe543cc9c4afc2b91bd85bdc0e48c",
            ),
            "onnx/acasxu_4_3.onnx": (
                "benchmarks/acasxu/ACASXU_run2a_4_3_batch_2000.onnx",
                "fec7c0eb68ef0f907c5f0a4affbece9fe1141a59f9e29ea6676674a58ebb4e6f",
            ),
            "onnx/cifar10_resnet_2b.onnx": (
                "benchmarks/cifar10_resnet/onnx/resnet_2b.onnx",
                "791aa24d77917ecda16809fbbd48e7739616f88ebf74cf358b2d1bf911dc4a6d",
            ),
            "onnx/mnist_convnet_maxpool.onnx": (
                "benchmarks/verivital/Convnet_maxpool.onnx",
                "6d5a0720e2eedb286a07ed9bb94c96fb33bd149d0424b253ebff78ec654b38dc",
            ),
        },
    )
)
"""Every known file, by its name in the folder, and its source."""
