"""The functions of `pyapp.plans`, to be awaited."""

from pyapp import plans
from pyapp._core.calls import twin

list_plans = twin(plans.list_plans)
get_plan = twin(plans.get_plan)
set_plan_price = twin(plans.set_plan_price)
