from diffusers_groundavideo import GroundAVideoPipeline  # noqa: F401
