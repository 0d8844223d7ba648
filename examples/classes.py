"""What the classes of the data sets are called."""

DIGITS = tuple("0123456789")
FASHION = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CLASSES = {"digits": DIGITS, "mnist": DIGITS, "fashion-mnist": FASHION}
