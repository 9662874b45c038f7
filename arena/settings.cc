#include "arena/settings.h"

namespace quarry {

constinit Settings settings;

}  // namespace quarry
