# What the coordinator may do: drive the groups of its pools, and nothing else; README.md has the table of
# calls. Its instance may open a door for sessions besides.
resource "aws_iam_role" "coordinator" {
  name                 = var.name
  description          = "Muster coordinator"
  permissions_boundary = var.permissions_boundary
  tags                 = local.tags

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ec2.amazonaws.com" }
    }]
  })
}

data "aws_iam_policy_document" "groups" {
  statement {
    sid = "See"
    # IAM knows no resources for these.
    actions   = ["autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeScalingActivities"]
    resources = ["*"]
  }

  statement {
    sid = "Drive"
    actions = [
      "autoscaling:SetDesiredCapacity",
      "autoscaling:SetInstanceProtection",
      "autoscaling:TerminateInstanceInAutoScalingGroup",
    ]
    resources = var.group_arns
  }
}

resource "aws_iam_role_policy" "groups" {
  count  = length(var.group_arns) == 0 ? 0 : 1
  name   = "groups"
  role   = aws_iam_role.coordinator.id
  policy = data.aws_iam_policy_document.groups.json
}

# Sessions and nothing else of Systems Manager: Amazon's own policy AmazonSSMManagedInstanceCore also lets
# an instance read all parameters of the account.
data "aws_iam_policy_document" "sessions" {
  statement {
    sid = "Sessions"
    # IAM knows no resources for the channels.
    actions = [
      "ssm:UpdateInstanceInformation",
      "ssmmessages:CreateControlChannel",
      "ssmmessages:CreateDataChannel",
      "ssmmessages:OpenControlChannel",
      "ssmmessages:OpenDataChannel",
    ]
    resources = ["*"]
  }
}

resource "aws_iam_role_policy" "sessions" {
  count  = var.ssm_access ? 1 : 0
  name   = "sessions"
  role   = aws_iam_role.coordinator.id
  policy = data.aws_iam_policy_document.sessions.json
}

resource "aws_iam_instance_profile" "coordinator" {
  name = var.name
  role = aws_iam_role.coordinator.name
  tags = local.tags
}
